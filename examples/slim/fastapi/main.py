"""Answers questions; some of what it needs is imported only when it is asked for."""

import importlib
import ssl

from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI(title="Answers")


class Sum(BaseModel):
    numbers: list[float]


@app.get("/health")
def health():
    return {"status": "ok"}


@app.post("/sum")
def total(body: Sum):
    return {"sum": sum(body.numbers)}


@app.get("/lazy")
def lazy():
    """Modules that nothing imports before the first request."""
    names = ["ctypes", "sqlite3", "zoneinfo", "decimal", "xml.etree.ElementTree", "lzma"]
    modules = [importlib.import_module(name).__name__ for name in names]
    zone = importlib.import_module("zoneinfo").ZoneInfo("Europe/Berlin")
    return {"modules": modules, "zone": str(zone)}


@app.get("/tls")
def tls():
    context = ssl.create_default_context()
    return {"authorities": len(context.get_ca_certs()) > 0}
