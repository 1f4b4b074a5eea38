"""Every PromQL expression that we ship, and what each asks for.

Dashboards, alert and recording rules, and the queries of ScaledObjects. A dashboard's variables are put in as Grafana
does it when everything is selected.
"""

import json
import re
from pathlib import Path

import promql_parser
import yaml

VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "5m",
    "$pool": ".*",
}


class Expression:
    """An expression, where it stands, and what of Prometheus it is read from."""

    def __init__(self, where, text):
        self.where = where
        self.text = text
        for variable, value in VARIABLES.items():
            self.text = self.text.replace(variable, value)
        if "$" in self.text:
            raise ValueError(f"{where}: an unknown variable in {self.text}")
        self.selectors = []
        # Labels that series are grouped or matched by, each beside the selectors beneath.
        self.labels = []
        self._walk(promql_parser.parse(self.text))

    def _walk(self, node):
        """Collects, and answers the selectors beneath the node."""
        kind = type(node).__name__
        if kind == "VectorSelector":
            # Which series they are has nothing to do with when they were.
            self.selectors.append(node.prettify().strip().split(" offset ")[0])
            return [self.selectors[-1]]
        if kind == "MatrixSelector":
            return self._walk(node.vector_selector)
        if kind == "Call":
            return [s for argument in node.args for s in self._walk(argument)]
        if kind == "BinaryExpr":
            beneath = self._walk(node.lhs) + self._walk(node.rhs)
            return beneath
        if kind == "AggregateExpr":
            beneath = self._walk(node.expr)
            by = node.modifier and "by" in str(node.modifier.type).lower()
            for label in node.modifier.labels if by else []:
                self.labels.append((label, beneath))
            return beneath
        if hasattr(node, "expr"):
            return self._walk(node.expr)
        return []


def dashboards(directory):
    for path in sorted(Path(directory).glob("*.json")):
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield Expression(f"{path.name}, {panel['title']!r}", target["expr"])
        for note in board["annotations"]["list"]:
            yield Expression(f"{path.name}, annotation", note["expr"])
        for variable in board["templating"]["list"]:
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable.get("definition", ""))
            if found:
                yield Expression(f"{path.name}, ${variable['name']}", f"count by ({found[2]}) ({found[1]})")


def rules(path):
    for group in yaml.safe_load(Path(path).read_text())["groups"]:
        for rule in group["rules"]:
            yield Expression(f"{Path(path).name}, {rule.get('alert') or rule['record']}", rule["expr"])


def scaled_objects(rendered):
    for path in rendered:
        for o in yaml.safe_load_all(Path(path).read_text()):
            if o and o["kind"] == "ScaledObject":
                for trigger in o["spec"]["triggers"]:
                    if trigger["type"] == "prometheus":
                        # Pools are named by deployments; here there is one of another name.
                        query = re.sub(r'pool="\w+"', 'pool="local"', trigger["metadata"]["query"])
                        yield Expression(f"{Path(path).name}, ScaledObject, {trigger['name']}", query)
