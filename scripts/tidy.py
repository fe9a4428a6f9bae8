#!/usr/bin/env python3
"""Checks of the source text that no compiler makes; a test, so it fails the build's tests.

The direction of #include between layers (docs/architecture.md), line and file length, tabs and
trailing blanks, words that say a thing is unfinished, paths of somebody's machine. Prints one line
a finding as FILE:LINE: text, warnings included; exits 1 if there is any finding but warnings.

Usage: scripts/tidy.py [ROOT]
"""

import fnmatch
import os
import re
import subprocess
import sys

LINE_COLUMNS = 100
FILE_LINES_WARN, FILE_LINES_MOST = 800, 1500
FUNCTION_LINES_WARN = 70

# Arrows point down: a layer includes itself and layers of a smaller number.
LAYER = {"base": 0, "io": 1, "comm": 1, "plan": 2, "dispatch": 2, "cuda": 2.5, "placement": 3,
         "runtime": 4, "replay": 5, "train": 6, "cli": 7}
# Pure functions over plain arrays: nothing of files and formats may reach them.
PURE = {"base", "plan", "dispatch", "cuda"}
# The layer that implements a public header.
PUBLIC = {"status": "base", "export": "base", "plan": "plan", "dispatch": "dispatch",
          "placement": "placement", "cuda": "cuda", "cuda_comm": "cuda", "trace": "io",
          "gen": "io", "comm": "comm", "replay": "replay",
          "lplb": "replay", "tracker": "runtime", "runtime": "runtime", "online": "replay",
          "monitor": "runtime", "comm_mpi": "comm", "tuning": "runtime",
          "advise": "runtime"}
# These structs are what files hold and results are made of, so they may be named below the code
# that implements them; the calls are still for the layers above only.
PUBLIC_STRUCTS = {("io", "plan"), ("io", "dispatch"), ("io", "placement"),
                  ("plan", "placement"), ("dispatch", "placement"), ("cuda", "placement")}
FORMAT_LIBRARIES = {"jansson.h", "zip.h", "yaml.h"}

# Spelled so that this file passes its own check.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b")
MACHINE_PATH = re.compile(r"(?<![\w.$}/])/(wo" r"rk|ho" r"me|ro" r"ot|Us" r"ers|mn" r"t)/\w")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')

TEXT = (".c", ".h", ".cu", ".cuh", ".py", ".sh", ".cmake", ".txt", ".in", ".html", ".css", ".js",
        ".md", ".yml", ".yaml")
NAMES = ("Makefile", "CMakeLists.txt", "run", ".clang-format", ".clang-tidy")
CODE = (".c", ".h", ".cu", ".cuh")
# Prose and tables: links and table rows are long by nature.
ANY_LENGTH = (".md", ".txt")


def list_files(root):
    """Tracked and new files that git does not ignore; where there is no git, all files but those in
    folders that .gitignore names."""
    try:
        run = subprocess.run(["git", "-C", root, "ls-files", "-z", "-co", "--exclude-standard"],
                             capture_output=True, check=True)
        names = run.stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names, ignored = [], [".git"]
        try:
            with open(os.path.join(root, ".gitignore")) as lines:
                ignored += [line.strip().strip("/") for line in lines if line.strip().endswith("/")]
        except OSError:
            pass
        for folder, below, files in os.walk(root):
            below[:] = [b for b in below if not any(fnmatch.fnmatch(b, i) for i in ignored)]
            names += [os.path.relpath(os.path.join(folder, f), root) for f in files]
    return sorted(n for n in names if n and os.path.isfile(os.path.join(root, n))
                  and (n.endswith(TEXT) or os.path.basename(n) in NAMES))


def include_fault(layer, quoted, angled):
    """Why code of this layer may not include the file, or None."""
    if quoted:
        target = quoted.split("/")[0] if "/" in quoted else None
        if target is None:
            return f'"{quoted}": name its folder'
        if target == "cases":
            return "the tests' own headers stay in the tests"
        if target not in LAYER or target == layer:
            return None
        if layer == "cli":
            return f'"{quoted}": the command line uses the public headers only'
        if layer in PURE and target in ("io", "comm"):
            return f'"{quoted}": {layer} is pure and does not know {target}'
        if LAYER[target] >= LAYER[layer]:
            return f'"{quoted}": {layer} is not above {target}'
        return None
    if angled.startswith("lplb/"):
        target = PUBLIC.get(angled[5:-2])
        if target is None:
            return f"<{angled}> has no layer: name it in scripts/tidy.py"
        if target == layer or (layer, target) in PUBLIC_STRUCTS:
            return None
        if layer in PURE and target == "io":
            return f"<{angled}>: {layer} is pure and does not know {target}"
        if LAYER[target] >= LAYER[layer]:
            return f"<{angled}>: {layer} is not above {target}"
    elif angled in FORMAT_LIBRARIES and layer in PURE | {"placement"}:
        return f"<{angled}>: {layer} does not read formats"
    return None


def check_includes(name, lines, report):
    parts = name.split("/")
    if parts[0] != "src" or len(parts) < 3 or not name.endswith(CODE):
        return
    if parts[1] not in LAYER:
        report(1, f"src/{parts[1]} is no layer: name it in scripts/tidy.py")
        return
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        fault = match and include_fault(parts[1], match.group(1), match.group(2) or "")
        if fault:
            report(number, fault)


def check_lines(name, lines, report):
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_COLUMNS and not name.endswith(ANY_LENGTH):
            report(number, f"{len(line)} columns, at most {LINE_COLUMNS}")
        if "\t" in line and os.path.basename(name) != "Makefile":
            report(number, "a tab")
        if line != line.rstrip():
            report(number, "blanks at the end of the line")
        if UNFINISHED.search(line):
            report(number, "finish it, or refuse the case with an error")
        if MACHINE_PATH.search(line):
            report(number, "a path of one machine")


def check_links(root, name, lines, report):
    """Files that a document links to, or names as docs/NAME.md, are there."""
    if not name.endswith(".md"):
        return
    for number, line in enumerate(lines, 1):
        links = [os.path.join(os.path.dirname(name), link)
                 for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line) if "://" not in link]
        for link in sorted(set(links + re.findall(r"\bdocs/\w+\.md\b", line))):
            if not os.path.exists(os.path.join(root, link)):
                report(number, f"there is no {link}")


def check_sizes(name, lines, report, warn):
    if not name.endswith(CODE + (".py", ".sh", ".js", ".css", ".html")):
        return
    if len(lines) > FILE_LINES_MOST:
        report(1, f"{len(lines)} lines, at most {FILE_LINES_MOST}: make two rooms of it")
    elif len(lines) > FILE_LINES_WARN:
        warn(1, f"{len(lines)} lines, aim below {FILE_LINES_WARN}")
    if name.endswith(CODE):
        start = None
        for number, line in enumerate(lines, 1):
            if re.match(r"^[A-Za-z_].*\) \{$|^\s+.*\) \{$", line) and start is None \
                    and not line.startswith(" "):
                start = number
            elif line == "}" and start is not None:
                if number - start + 1 > FUNCTION_LINES_WARN:
                    warn(start, f"a function of {number - start + 1} lines, "
                                f"aim below {FUNCTION_LINES_WARN}")
                start = None


def main():
    root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "..")
    counts = {"error": 0, "warning": 0}
    files = list_files(root)
    if not files:
        print(f"tidy: no source files under {root}")
        return 1
    for name in files:
        def report(number, text, kind="error", name=name):
            counts[kind] += 1
            print(f"{name}:{number}: {'' if kind == 'error' else 'warning: '}{text}")

        def warn(number, text, report=report):
            report(number, text, "warning")

        try:
            with open(os.path.join(root, name), encoding="utf-8") as file:
                text = file.read()
        except UnicodeDecodeError as error:
            report(1, f"not UTF-8: {error}")
            continue
        lines = text.split("\n")
        if lines[-1] != "":
            report(len(lines), "no newline at the end of the file")
        else:
            lines.pop()
        if name.startswith(("tests/data/", "fuzz/corpus/", "data/")):
            continue
        check_includes(name, lines, report)
        check_lines(name, lines, report)
        check_links(root, name, lines, report)
        check_sizes(name, lines, report, warn)
    print(f"tidy: {len(files)} files, {counts['error']} errors, {counts['warning']} warnings")
    return 1 if counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
