"""Makes a folder of shared libraries independent of the system's, but for the C library's own.

    python3 cmake/bundle.py FOLDER

What the libraries in FOLDER need is copied beside them under a name with a hash of its content, as
auditwheel does, so that it never meets another copy of the same library in a process; the licence
texts of Debian packages go to FOLDER/licenses. Needs patchelf.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Every Linux system with a C library has these.
SYSTEM = re.compile(r"(lib(c|m|dl|rt|pthread|gcc_s)|ld-linux.*)\.so\.\d+$")


def run(*command):
    return subprocess.run([str(c) for c in command], check=True, capture_output=True,
                          text=True).stdout


def found_by_loader(library):
    """{soname: path} of everything the library needs, by way of others too."""
    out = {}
    for line in run("ldd", library).splitlines():
        match = re.match(r"\s*(\S+) => (/\S+)", line)
        if match:
            out[match.group(1)] = Path(match.group(2)).resolve()
        elif "not found" in line:
            sys.exit(f"bundle.py: {library.name} needs {line.split()[0]}, which is not there")
    return out


def keep_licence(path, folder):
    """The copyright file of the Debian package that the library is from."""
    names = [str(path), str(path).replace("/usr/lib", "/lib", 1)]  # as its package has it
    owner = subprocess.run(["dpkg", "-S", *names], capture_output=True, text=True, check=False)
    if not owner.stdout:
        return
    package = owner.stdout.split(":")[0]
    text = Path("/usr/share/doc") / package / "copyright"
    if text.is_file():
        folder.mkdir(exist_ok=True)
        shutil.copyfile(text, folder / f"{package}.txt")


def bundle(folder):
    own = sorted(folder.glob("*.so*"))
    names = {library.name for library in own}
    where, copies = {}, {}
    for library in own:
        where.update(found_by_loader(library))
    queue = list(own)
    while queue:
        library = queue.pop()
        for needed in run("patchelf", "--print-needed", library).split():
            if SYSTEM.match(needed) or needed in names:
                continue
            if needed not in copies:
                source = where[needed]
                digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
                stem, _, version = needed.partition(".so")
                copies[needed] = folder / f"{stem}-{digest}.so{version}"
                shutil.copyfile(source, copies[needed])
                run("patchelf", "--set-soname", copies[needed].name, copies[needed])
                keep_licence(source, folder / "licenses")
                queue.append(copies[needed])
            run("patchelf", "--replace-needed", needed, copies[needed].name, library)
        run("patchelf", "--set-rpath", "$ORIGIN", library)
    for needed, copy in sorted(copies.items()):
        print(f"-- lplb: the wheel carries {needed} as {copy.name}")


if __name__ == "__main__":
    bundle(Path(sys.argv[1]))
