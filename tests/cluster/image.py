#!/usr/bin/env python3
"""Writes a container image with one layer as an archive that `ctr images import` takes. No registry, no container engine.

The same content gives the same image: entries are sorted and carry no time.
"""

import argparse
import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", help="the file to write")
    parser.add_argument("--tag", action="append", required=True, help="NAME:TAG; several are names of the same image")
    parser.add_argument("--file", action="append", default=[], metavar="FILE[=PATH]",
                        help="a file, under /usr/local/bin or as PATH; of a program also the shared libraries that it loads")
    parser.add_argument("--tree", help="a folder that becomes the whole root")
    parser.add_argument("--without", action="append", default=[], metavar="PATH", help="of the tree: not what this folder holds")
    parser.add_argument("--owner", action="append", default=[], metavar="UID:GID=UID:GID", help="of the tree: another owner")
    parser.add_argument("--entry", action="append", required=True, help="the command; again for each argument")
    parser.add_argument("--user", default="", help="UID:GID")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_args()


def libraries(program):
    """What the loader maps for a program, by the paths it looks for: nothing for a static one, or for what is no program."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    return re.findall(r"(/\S+) \(0x", listed.stdout) if listed.returncode == 0 else []


def add_file(layer, source, path):
    real = os.path.realpath(source)
    entry = layer.gettarinfo(real, arcname=path.lstrip("/"))
    entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", os.path.getsize(real)  # hard links of the outside mean nothing here
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if os.access(real, os.X_OK) else 0o644
    with open(real, "rb") as content:
        layer.addfile(entry, content)


def add_text(layer, path, text):
    entry = tarfile.TarInfo(path)
    entry.size, entry.mode = len(text), 0o644
    layer.addfile(entry, io.BytesIO(text.encode()))


def add_tree(layer, root, without, owners):
    without = tuple(path.strip("/") + "/" for path in without)

    def keep(entry):
        if entry.name.startswith(without) or not (entry.isfile() or entry.isdir() or entry.issym() or entry.islnk()):
            return None
        owner = owners.get(f"{entry.uid}:{entry.gid}")
        if owner:
            entry.uid, entry.gid = owner
        entry.mtime, entry.uname, entry.gname = 0, "", ""
        return entry

    for name in sorted(os.listdir(root)):
        layer.add(os.path.join(root, name), arcname=name, filter=keep)


def sha256(file):
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(1 << 20), b""):
        digest.update(chunk)
    return digest.hexdigest()


def write_layer(options, file):
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as layer:
        if options.tree:
            owners = dict(pair.split("=") for pair in options.owner)
            owners = {old: tuple(map(int, new.split(":"))) for old, new in owners.items()}
            add_tree(layer, options.tree, options.without, owners)
        wanted = {}
        for named in options.file:
            source, _, path = named.partition("=")
            wanted[path or "/usr/local/bin/" + os.path.basename(source)] = source
            wanted.update((library, library) for library in libraries(source))
        for path in sorted(wanted):
            add_file(layer, wanted[path], path)
        if options.user and not options.tree:  # programs look up who they are
            add_text(layer, "etc/passwd", f"root:x:0:0::/:\nnonroot:x:{options.user}::/:\n")


def main():
    options = arguments()
    with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(options.archive))) as layer:
        write_layer(options, layer)
        size = layer.tell()
        layer.seek(0)
        digest = sha256(layer)
        config = json.dumps({
            "architecture": MACHINES.get(os.uname().machine, os.uname().machine),
            "os": "linux",
            "config": {"Entrypoint": options.entry, "Env": options.env or [f"PATH={PATH}"], "User": options.user, "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }, sort_keys=True).encode()
        name = hashlib.sha256(config).hexdigest() + ".json"
        manifest = json.dumps([{"Config": name, "RepoTags": options.tag, "Layers": [f"{digest}.tar"]}]).encode()
        with tarfile.open(options.archive, "w") as archive:
            for path, length, content in (
                (f"{digest}.tar", size, layer), (name, len(config), io.BytesIO(config)), ("manifest.json", len(manifest), io.BytesIO(manifest)),
            ):
                entry = tarfile.TarInfo(path)
                entry.size = length
                content.seek(0)
                archive.addfile(entry, content)


if __name__ == "__main__":
    main()
