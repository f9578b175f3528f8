// Answers questions; its plug-ins are loaded when they are asked for.
const express = require("express");
const app = express();

app.get("/health", (request, response) => response.json({ status: "ok" }));

app.get("/plug/:name", (request, response) => {
  const plug = require("./plug/" + request.params.name);
  response.send(plug.text());
});

app.get("/tls", (request, response) => {
  const context = require("tls").createSecureContext();
  response.json({ context: typeof context, zone: new Date(0).toLocaleString("de-DE", { timeZone: "Europe/Berlin" }) });
});

app.listen(8000, () => console.log("listening on port 8000"));
