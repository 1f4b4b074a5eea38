"""Holds the commands that documents tell readers to type to what the programs take.

    python documents.py GATEWAY WORKER DOCUMENT.md...

Each `millrace-gateway …`, `gw …` (the runbook's shorthand) and `millrace-worker …`, in a block or a line, must name a
subcommand, and flags of that. Exits with 1 and a line for each thing that is wrong.
"""

import re
import subprocess
import sys
from pathlib import Path


def helps(program):
    """What each subcommand's --help says."""
    top = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    names = re.findall(r"^  ([a-z]+) ", top.split("Commands:")[1].split("\n\n")[0], re.M)
    shown = {n: subprocess.run([program, n, "--help"], check=True, capture_output=True, text=True).stdout for n in names if n != "help"}
    return {name: set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text)) | {"--help"} for name, text in shown.items()}


def commands(text):
    """Program, subcommand, flags and line of each command; a line that ends with a backslash goes on."""
    text = re.sub(r"\\\n\s*", "  ", text)
    for number, line in enumerate(text.splitlines(), 1):
        # Where a command line ends: at a pipe, a list, a closing tick, or a comment.
        for found in re.finditer(r"(?<![\w./-])(?:/usr/local/bin/|target/debug/)?(gw|millrace-gateway|millrace-worker) ([a-z]+)\b([^`|;&#)]*)", line):
            yield found[1], found[2], re.findall(r"(?<![\w-])--[a-z][a-z-]+", found[3]), number


def main():
    gateway, worker, *documents = sys.argv[1:]
    known = {"millrace-gateway": helps(gateway), "millrace-worker": helps(worker)}
    known["gw"] = known["millrace-gateway"]
    wrong, count = [], 0
    for document in documents:
        for program, subcommand, flags, number in commands(Path(document).read_text()):
            if subcommand not in known[program]:
                # Prose: "the gateway's gw stands for", "millrace-worker that".
                inside = re.search(rf"`[^`\n]*{program} {subcommand}\b|^\s*{program} {subcommand}\b", Path(document).read_text(), re.M)
                wrong += [f"{document}: {program} has no subcommand {subcommand}"] * bool(inside)
                continue
            count += 1
            wrong += [f"{document}: {program} {subcommand} has no {flag}" for flag in flags if flag not in known[program][subcommand]]
    print(*wrong, sep="\n", file=sys.stderr)
    print(f"{count} commands in {len(documents)} documents: {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
