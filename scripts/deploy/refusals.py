"""Holds every validation of Terraform's variables to the sentence that it says.

    python refusals.py [--write] MODULE...

The bad values are those of MODULE/tests/*.tftest.hcl, in the runs that expect failures. Each is given to `terraform plan`
beside the variables alone, so neither a provider nor a cloud is asked; what Terraform prints must stand, word for word,
in MODULE/tests/refusals.txt, and every validation must have had something to refuse. --write writes those files, for
somebody to read. Exits with 1 and a line for each thing that is wrong.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RULE = re.compile(r"\n+This was checked by the validation rule at variables\.tf:(\d+),")


def block(text, head):
    """What stands between the braces of the first block that begins with `head`, at the left margin of its own level."""
    found = re.search(rf"^( *){head} \{{\n(.*?)^\1\}}", text, re.M | re.S)
    return found[2] if found else ""


def runs(tests):
    """Name, good values, bad values and the variables that are to be refused, of each run that expects failures."""
    for path in tests:
        text = path.read_text()
        good = block(text[: text.index('\nrun "')], "variables")
        for name, body in re.findall(r'^run "(\w+)" \{\n(.*?)^\}', text, re.M | re.S):
            expected = re.search(r"expect_failures = \[(.*?)\]", body, re.S)
            if expected:
                yield name, good, block(body, "variables"), set(re.findall(r"var\.(\w+)", expected[1]))


def refused(place, good, bad):
    """Line of the rule and sentence of each refusal; what else Terraform says comes with the line 0."""
    (place / "good.tfvars").write_text(good)
    (place / "bad.tfvars").write_text(bad)
    done = subprocess.run(
        ["terraform", "plan", "-json", "-input=false", "-lock=false", "-var-file=good.tfvars", "-var-file=bad.tfvars"],
        cwd=place, capture_output=True, text=True,
    )
    for line in done.stdout.splitlines():
        said = json.loads(line).get("diagnostic")
        if not said:
            continue
        rule = RULE.search(said["detail"])
        if rule:
            yield int(rule[1]), said["detail"][: rule.start()]
        else:
            yield 0, f"{said['summary']}: {said['detail']}"


def check(module, write):
    """What is wrong in a module, and how many sentences its validations say."""
    rules = [n for n, line in enumerate((module / "variables.tf").read_text().splitlines(), 1) if line == "  validation {"]
    variables = {}
    for n, line in enumerate((module / "variables.tf").read_text().splitlines(), 1):
        named = re.match(r'variable "(\w+)"', line)
        variables[n] = named[1] if named else variables.get(n - 1)
    wrong, fired, table = [], set(), []
    with tempfile.TemporaryDirectory(prefix="millrace-refusals-") as place:
        place = Path(place)
        shutil.copy(module / "variables.tf", place)
        for name, good, bad, expected in runs(sorted((module / "tests").glob("*.tftest.hcl"))):
            seen = set()
            for rule, sentence in sorted(refused(place, good, bad)):
                if not rule:
                    wrong.append(f"{module}: {name}: {sentence}")
                    continue
                fired.add(rule)
                seen.add(variables[rule])
                table.append(f"{name}: {sentence}")
                if not re.match(rf"{variables[rule]}\b", sentence):
                    wrong.append(f"{module}: {name}: the sentence does not begin with the name {variables[rule]}: {sentence}")
            wrong += [f"{module}: {name}: {v} is not refused" for v in sorted(expected - seen)]
            wrong += [f"{module}: {name}: {v} is refused, and nobody expects it" for v in sorted(seen - expected)]
    wrong += [f"{module}/variables.tf:{n}: no test has a value that this validation of {variables[n]} refuses" for n in rules if n not in fired]
    text = "".join(f"{line}\n" for line in table)
    kept = module / "tests/refusals.txt"
    if write:
        kept.write_text(text)
    elif not kept.exists() or kept.read_text() != text:
        before = set(kept.read_text().splitlines()) if kept.exists() else set()
        changed = [line for line in table if line not in before] + [f"no longer: {line}" for line in sorted(before - set(table))]
        wrong += [f"{kept}: {line}" for line in changed or ["the order has changed"]]
    return wrong, len(rules), len(table)


def main():
    modules = [Path(m) for m in sys.argv[1:] if m != "--write"]
    wrong = []
    for module in modules:
        found, rules, sentences = check(module, "--write" in sys.argv)
        wrong += found
        print(f"{module}: {rules} validations refuse {sentences} values by the sentences in tests/refusals.txt: {len(found)} wrong")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
