"""Says which alerts are not whole: each wants a test that makes it fire, one that keeps it quiet, and a section of the
runbook.

    python alerts.py RULES.yaml RUNBOOK.md TEST.yaml...
"""

import re
import sys
from pathlib import Path

import yaml


def main():
    rules, runbook, *tests = (Path(p) for p in sys.argv[1:])
    alerts = [r for g in yaml.safe_load(rules.read_text())["groups"] for r in g["rules"] if "alert" in r]
    asked = [
        case for path in tests for test in yaml.safe_load(path.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    fires = {case["alertname"] for case in asked if case.get("exp_alerts")}
    quiet = {case["alertname"] for case in asked if not case.get("exp_alerts")}
    sections = {re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-") for line in runbook.read_text().splitlines() if line.startswith("## ")}
    wrong = []
    for alert in alerts:
        name = alert["alert"]
        section = alert["annotations"]["runbook_url"].split("#")[1]
        wrong += [f"no test makes {name} fire"] * (name not in fires)
        wrong += [f"no test keeps {name} quiet"] * (name not in quiet)
        wrong += [f"{runbook} has no section {section}, for {name}"] * (section not in sections)
    wrong += [f"a test asks for {name}, which is no alert" for name in (fires | quiet) - {a["alert"] for a in alerts}]
    print(*wrong, sep="\n", file=sys.stderr)
    print(f"{len(alerts)} alerts, {len(asked)} expectations: {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
