#!/usr/bin/env python3
"""usage: tars.py FOLDER COUNT SEED

Makes tars of every format with odd names, long names, links, PAX records and flipped bytes, and
prints how Python reads each: one line of JSON an archive, null where it refuses.
"""
import hashlib, io, json, os, random, sys, tarfile

folder, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
LETTERS = "abcxyz.-_ äß文\\\"'%\t\x7f"


def name():
    depth = chance.choice([1, 1, 2, 3, 6])
    length = chance.choice([1, 3, 8, 40, 99, 100, 101, 180])
    parts = ["".join(chance.choice(LETTERS) for _ in range(max(1, length // depth))) for _ in range(depth)]
    return "/".join(part.strip(". ") or "n" for part in parts)


def archive():
    kind = chance.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, encoding="utf-8", errors="surrogateescape") as tar:
        for _ in range(chance.choice([0, 1, 2, 5, 12])):
            info = tarfile.TarInfo(name())
            info.type = chance.choice([b"0", b"0", b"0", b"5", b"2", b"1", b"6"])
            info.mode = chance.choice([0o644, 0o755, 0o4755, 0])
            info.uid, info.gid = chance.choice([0, 5, 0o7777777, 2097152, 70000]), chance.choice([0, 99])
            info.mtime = chance.choice([0, 1, 1700000000, 1 << 34]) + chance.choice([0, 0.25])
            data = b""
            if info.type in b"12":
                info.linkname = name()
            if info.type == b"0":
                data = chance.randbytes(chance.choice([0, 1, 511, 512, 513, 5000]))
                info.size = len(data)
                if kind == tarfile.PAX_FORMAT and chance.random() < 0.3:
                    info.pax_headers = {"size": str(len(data)), "comment": name()}
            if kind != tarfile.PAX_FORMAT:
                info.mtime = int(info.mtime)
            try:
                tar.addfile(info, io.BytesIO(data))
            except ValueError:
                pass  # the format has no room for such a name or number
    data = bytearray(buffer.getvalue())
    for _ in range(chance.choice([0, 0, 0, 1, 3])):
        flip(data)
    return bytes(data)


def flip(data):
    """Changes a byte of a header and makes its checksum right again."""
    headers = [at for at in range(0, len(data), 512) if data[at + 257:at + 262] == b"ustar"]
    if not headers:
        return
    at = chance.choice(headers)
    field = chance.choice([0, 100, 108, 116, 124, 134, 136, 156, 157, 257, 263, 345])
    data[at + field + chance.randrange(2)] = chance.choice(b"\0 0157xLK\x80\xff/.")
    data[at + 148:at + 156] = b"        "
    data[at + 148:at + 156] = b"%06o\0 " % sum(data[at:at + 512])


def read(path):
    try:
        entries = []
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            for info in tar:
                data = tar.extractfile(info).read() if info.isreg() else b""
                entries.append([
                    os.fsencode(info.name).rstrip(b"/").hex(),
                    info.type.decode("latin-1"),
                    os.fsencode(info.linkname).hex() if info.issym() or info.islnk() else "",
                    info.mode & 0o7777, info.uid, info.gid, int(info.mtime // 1),
                    hashlib.sha256(data).hexdigest(),
                ])
        return entries
    except Exception:
        return None


for number in range(count):
    path = os.path.join(folder, f"{number}.tar")
    with open(path, "wb") as file:
        file.write(archive())
    print(json.dumps(read(path)))
