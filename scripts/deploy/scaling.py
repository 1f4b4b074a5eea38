"""What the ScaledObject's queries say of series that are made up: how many workers, and when the first.

    python scaling.py RENDERED.yaml...

A case is a minute's samples and what a query answers at its end; promtool evaluates. Exits as promtool does.
"""

import json
import subprocess
import sys
import tempfile

import yaml

REFUSALS = 'millrace_gateway_routing_refusals_total{{reason="{}",pod="a"}}'
HEADROOM = 'millrace_gateway_pool_headroom_ratio{pool="other"}'
HEALTHY = 'millrace_gateway_endpoint_healthy{pool="other"}'
WORK = 'millrace_worker_pool_work_seconds{{pool="{}",pod="{}"}}'
RUNNING = 'millrace_worker_running{{pool="{}",pod="{}"}}'
# Ten minutes at a sample each 15 s.
LONG = 40


def cases(pool):
    """Of each trigger: what it is about, series with their samples, and the value."""
    yield "wanted", "no gateway says anything", {}, 0
    # Prometheus knows no increase of a counter that begins with a value.
    yield "wanted", "a gateway's first refusal", {REFUSALS.format("unhealthy"): f"_x{LONG} 1"}, 1
    yield "wanted", "a later refusal", {REFUSALS.format("saturated"): f"1x{LONG - 2} 2 2"}, 1
    yield "wanted", "refusals of long ago", {REFUSALS.format("exhausted"): f"7x{LONG}"}, 0
    yield "wanted", "refusals for what no worker would change", {REFUSALS.format("drained"): f"_x{LONG} 1"}, 0
    yield "wanted", "the freest pool is nearly full", {HEADROOM: f"0.05x{LONG}", HEALTHY: f"1x{LONG}"}, 1
    yield "wanted", "there is room", {HEADROOM: f"0.5x{LONG}", HEALTHY: f"1x{LONG}"}, 0
    yield "wanted", "nobody lives, and nobody asks", {HEADROOM: f"0x{LONG}", HEALTHY: f"0x{LONG}"}, 0
    two = {WORK.format(pool, w): f"360x{LONG}" for w in "ab"} | {RUNNING.format(pool, w): f"1x{LONG}" for w in "ab"}
    yield "backlog", "six minutes of work wait, and two run: five workers", two, 5 * 120
    idle = {WORK.format(pool, "a"): f"0x{LONG}", RUNNING.format(pool, "a"): f"0x{LONG}"}
    yield "backlog", "nothing waits, nothing runs", idle, 0
    yield "backlog", "another pool's work", idle | {WORK.format("another", "a"): f"900x{LONG}", RUNNING.format("another", "a"): f"9x{LONG}"}, 0


def main():
    count = 0
    for path in sys.argv[1:]:
        objects = [o for o in yaml.safe_load_all(open(path)) if o]
        scaled = next(o for o in objects if o["kind"] == "ScaledObject")
        queries = {t["name"]: t["metadata"]["query"] for t in scaled["spec"]["triggers"]}
        pool = next(o["data"]["MILLRACE_POOL"] for o in objects if o["kind"] == "ConfigMap" and "MILLRACE_POOL" in o.get("data", {}))
        tests = []
        for trigger, about, series, value in cases(pool):
            count += 1
            expected = {"expr": queries[trigger], "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": value}]}
            tests.append({
                "name": f"{path}: {trigger}: {about}", "interval": "15s", "promql_expr_test": [expected],
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
            })
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            json.dump({"rule_files": [], "evaluation_interval": "15s", "tests": tests}, file)
            file.flush()
            done = subprocess.run(["promtool", "test", "rules", file.name], capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr, sep="", file=sys.stderr)
            return done.returncode
    print(f"{count} cases hold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
