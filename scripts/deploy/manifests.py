"""What can be said of manifests without a cluster: schemas, references, selectors, rights and times.

    python manifests.py GATEWAY WORKER RENDERED.yaml...

GATEWAY and WORKER are the programs; their --help says which variables and flags exist and what the defaults are. Exits
with 1 and a line for each thing that is wrong.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib
import warnings

import kubernetes_validate
import yaml

KUBERNETES = "1.32"
TERRAFORM = pathlib.Path(__file__).parents[2] / "terraform"
OUR_GROUPS = ("cert-manager.io", "external-secrets.io", "keda.sh", "monitoring.coreos.com")
# From SIGTERM until every lease is given back, and from a reclaimed node's SIGTERM until it is gone.
RELEASE_S_MAX = 5
SPOT_S = 15
# ffmpeg's time between SIGTERM and SIGKILL.
FFMPEG_S = 3
# What a process takes to end when nothing is left to wait for: a worker closes connections for 2 s, a gateway joins its
# tasks and flushes its log within 1 s each.
ENDING_S = 2


def seconds(text):
    """A time as the programs read it, of the forms that manifests and --help use."""
    value, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(value) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


class Program:
    """What `PROGRAM run --help` tells."""

    def __init__(self, path):
        text = subprocess.run([path, "run", "--help"], check=True, capture_output=True, text=True).stdout
        text = re.sub(r"\s+", " ", text)
        self.variables = set(re.findall(r"\[env: (\w+)=", text))
        self.flags = set(re.findall(r"(--[a-z][a-z-]+) <", text))
        self.text = text

    def default(self, variable):
        """The default of a setting, by its variable."""
        flag = "--" + variable.removeprefix("MILLRACE_").lower().replace("_", "-")
        part = self.text.split(f"{flag} <", 1)[1].split(" --", 1)[0]
        return re.search(r"\[default: ([^\]]+)\]", part).group(1)


class Overlay:
    """One rendered overlay."""

    def __init__(self, path):
        self.path = path
        self.objects = [o for o in yaml.safe_load_all(open(path)) if o]
        self.wrong = []

    def say(self, what, why):
        name = f"{what['kind']}/{what['metadata']['name']}" if isinstance(what, dict) else what
        self.wrong.append(f"{self.path}: {name}: {why}")

    def of(self, *kinds):
        return [o for o in self.objects if o["kind"] in kinds]

    def has(self, kind, name):
        return any(o["metadata"]["name"] == name for o in self.of(kind))

    def on_one_node(self):
        """Whether it is for a node of any kind."""
        return not any("nodeSelector" in d["spec"]["template"]["spec"] for d in self.of("Deployment"))

    def on_gke(self):
        return any("iam.gke.io/gcp-service-account" in o["metadata"].get("annotations", {}) for o in self.of("ServiceAccount"))

    def pods(self, selector):
        labels = selector.get("matchLabels", selector)
        return [
            d for d in self.of("Deployment")
            if labels.items() <= d["spec"]["template"]["metadata"]["labels"].items()
        ]


def containers(deployment):
    pod = deployment["spec"]["template"]["spec"]
    return pod.get("initContainers", []) + pod["containers"]


def ports(deployment):
    return {p["name"]: p["containerPort"] for c in containers(deployment) for p in c.get("ports", [])}


def schemas(overlay):
    count = 0
    for o in overlay.objects:
        if o["apiVersion"].split("/")[0] in OUR_GROUPS:
            continue
        count += 1
        try:
            kubernetes_validate.validate(o, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            overlay.say(o, f"{'.'.join(map(str, error.path))}: {error.message}")
    return count


def selectors(overlay):
    """Whatever selects pods selects some, and ports that are named exist."""
    for o in overlay.of("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        spec = o["spec"]
        selector = spec.get("podSelector", spec.get("selector", {}))
        found = overlay.pods(selector)
        if not found:
            overlay.say(o, f"selects no pod by {selector}")
        wanted = [p.get("targetPort", p["port"]) for p in spec.get("ports", [])]
        wanted += [p["port"] for rule in spec.get("ingress", []) for p in rule.get("ports", [])]
        wanted += [e["port"] for e in spec.get("podMetricsEndpoints", [])]
        for port in wanted:
            if isinstance(port, str) and any(port not in ports(d) for d in found):
                overlay.say(o, f"the pods have no port {port}")
    for o in overlay.of("ServiceMonitor"):
        services = [
            s for s in overlay.of("Service")
            if o["spec"]["selector"]["matchLabels"].items() <= s["metadata"]["labels"].items()
        ]
        if len(services) != 1:
            overlay.say(o, f"selects {len(services)} services, which makes each target count as often")
        for endpoint in o["spec"]["endpoints"]:
            for service in services:
                if endpoint["port"] not in [p["name"] for p in service["spec"]["ports"]]:
                    overlay.say(o, f"Service/{service['metadata']['name']} has no port {endpoint['port']}")
    for o in overlay.of("NetworkPolicy"):
        for rule in o["spec"].get("egress", []):
            for peer in rule.get("to", []):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    listens = {p for d in overlay.pods(peer["podSelector"]) for p in ports(d).values()}
                    if not {p["port"] for p in rule["ports"]} <= listens:
                        overlay.say(o, f"lets out to a port that nobody listens on: {rule['ports']}")
    for o in overlay.of("HorizontalPodAutoscaler", "ScaledObject"):
        target = o["spec"]["scaleTargetRef"]["name"]
        if not overlay.has("Deployment", target):
            overlay.say(o, f"there is no Deployment/{target}")
        elif any("replicas" in d["spec"] for d in overlay.of("Deployment") if d["metadata"]["name"] == target):
            overlay.say(o, f"Deployment/{target} says replicas, so that each apply undoes the autoscaler's")


def references(overlay):
    """What pods refer to exists, or a custom resource makes it."""
    secrets = {o["spec"]["target"]["name"] for o in overlay.of("ExternalSecret")}
    secrets |= {o["spec"]["secretName"] for o in overlay.of("Certificate")}
    configs = {o["metadata"]["name"] for o in overlay.of("ConfigMap")}
    for o in overlay.of("Secret"):
        overlay.say(o, "a secret has no place in git")
    for d in overlay.of("Deployment"):
        pod = d["spec"]["template"]["spec"]
        if not overlay.has("ServiceAccount", pod["serviceAccountName"]):
            overlay.say(d, f"there is no ServiceAccount/{pod['serviceAccountName']}")
        for volume in pod["volumes"]:
            config = volume.get("configMap")
            if config and not config.get("optional") and config["name"] not in configs:
                overlay.say(d, f"there is no ConfigMap/{config['name']}")
            wanted = [volume["secret"]["secretName"]] if "secret" in volume else []
            for source in volume.get("projected", {}).get("sources", []):
                wanted += [source["secret"]["name"]] if "secret" in source else []
                config = source.get("configMap")
                if config and not config.get("optional") and config["name"] not in configs:
                    overlay.say(d, f"there is no ConfigMap/{config['name']}")
                # Kubernetes 1.32 takes a source without them for the one before it, and warns that the two overlap.
                files = source.get("secret") or config
                if files and "items" not in files:
                    overlay.say(d, f"the volume {volume['name']} does not say which files it takes of {files['name']}")
            for name in wanted:
                if name not in secrets:
                    overlay.say(d, f"nothing makes Secret/{name}")
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                overlay.say(d, f"the volume {volume['name']} may fill the node's disk")
        for c in containers(d):
            for mount in c.get("volumeMounts", []):
                if mount["name"] not in [v["name"] for v in pod["volumes"]]:
                    overlay.say(d, f"there is no volume {mount['name']}")
                if "subPath" in mount:
                    overlay.say(d, f"{mount['mountPath']} by subPath never sees a change")
            for source in c.get("envFrom", []):
                if source["configMapRef"]["name"] not in configs:
                    overlay.say(d, f"there is no ConfigMap/{source['configMapRef']['name']}")
            for variable in c.get("env", []):
                ref = variable.get("valueFrom", {}).get("secretKeyRef")
                if ref and ref["name"] not in secrets:
                    overlay.say(d, f"nothing makes Secret/{ref['name']}")
            if not re.search(r":[^:/]+$", c["image"]) or c["image"].endswith(":latest"):
                overlay.say(d, f"the image {c['image']} is of no version")


def internal_tls(overlay):
    """Who shows a certificate to whom, and what is asked for without one."""
    secrets = {o["spec"]["target"]["name"] for o in overlay.of("ExternalSecret")}
    secrets |= {o["spec"]["secretName"] for o in overlay.of("Certificate")}
    for o in overlay.of("Issuer"):
        if o["spec"]["ca"]["secretName"] not in secrets:
            overlay.say(o, f"nothing makes Secret/{o['spec']['ca']['secretName']}")
    for o in overlay.of("Certificate"):
        issuer = o["spec"]["issuerRef"]
        if issuer["kind"] == "Issuer" and not overlay.has("Issuer", issuer["name"]):
            overlay.say(o, f"there is no Issuer/{issuer['name']}")
    worker = next(d for d in overlay.of("Deployment") if d["metadata"]["name"] == "worker")
    c = worker["spec"]["template"]["spec"]["containers"][0]
    asks = "MILLRACE_TLS_CLIENT_CA" in [v["name"] for v in c["env"]]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        if asks and "httpGet" in c[probe]:
            overlay.say(worker, f"its {probe} shows no certificate, and workers ask for one")
        command = c[probe].get("exec", {}).get("command", [])
        if asks and command[:2] != ["/usr/local/bin/millrace-worker", "probe"]:
            overlay.say(worker, f"its {probe} does not ask the worker: {command}")
        if command and seconds(command[-1]) >= c[probe].get("timeoutSeconds", 1):
            overlay.say(worker, f"its {probe} is cut off before it can say what is wrong")
    routing = tomllib.loads(next(o["data"]["routing.toml"] for o in overlay.of("ConfigMap") if o["metadata"]["name"] == "routing"))
    names = {n for o in overlay.of("Certificate") for n in o["spec"].get("dnsNames", [])}
    for pool in routing["pools"]:
        if pool.get("tls", False) != asks:
            overlay.say("routing.toml", f"pool {pool['name']} has tls = {pool.get('tls', False)}, and workers' client CA is {asks}")
    if asks and routing["upstream_tls"]["server_name"] not in names:
        overlay.say("routing.toml", f"no certificate has the name {routing['upstream_tls']['server_name']}")
    for o in overlay.of("PodMonitor"):
        for endpoint in o["spec"]["podMetricsEndpoints"]:
            tls = endpoint.get("tlsConfig")
            if asks != (endpoint.get("scheme") == "https" and tls is not None):
                overlay.say(o, "asks workers in another way than they serve")
            if tls and tls["serverName"] not in names:
                overlay.say(o, f"no certificate has the name {tls['serverName']}")
            for secret in (tls["ca"]["secret"], tls["cert"]["secret"], tls["keySecret"]) if tls else ():
                if secret["name"] not in secrets:
                    overlay.say(o, f"nothing makes Secret/{secret['name']}")


def identities(overlay):
    """A file that says how Google is asked names the token that is projected beside it, for the audience of that token."""
    described = {
        o["metadata"]["name"]: json.loads(text)
        for o in overlay.of("ConfigMap") for text in o["data"].values() if '"external_account"' in text
    }
    for d in overlay.of("Deployment"):
        pod = d["spec"]["template"]["spec"]
        mounts = {m["name"]: m["mountPath"] for c in containers(d) for m in c.get("volumeMounts", [])}
        for volume in pod["volumes"]:
            sources = volume.get("projected", {}).get("sources", [])
            tokens = {f"{mounts[volume['name']]}/{s['serviceAccountToken']['path']}": s["serviceAccountToken"]["audience"] for s in sources if "serviceAccountToken" in s}
            for name in (s["configMap"]["name"] for s in sources if "configMap" in s):
                file = described.pop(name, None)
                if file and tokens.get(file["credential_source"]["file"]) != f"https:{file['audience']}":
                    overlay.say(d, f"{name} wants a token for https:{file['audience']} in {file['credential_source']['file']}; there are {tokens}")
    for name in described:
        overlay.say(f"ConfigMap/{name}", "is mounted nowhere, or apart from its token")


def nodes(overlay):
    """Pods choose the nodes of one role, and tolerate what keeps others away from these: terraform's own taint, and on GKE the one of arm64."""
    for d in overlay.of("Deployment"):
        pod = d["spec"]["template"]["spec"]
        if overlay.on_one_node():
            continue
        role = pod.get("nodeSelector", {}).get("millrace.dev/role")
        if role != d["metadata"]["name"]:
            overlay.say(d, f"runs on nodes for {role}")
        taints = [{"key": "millrace.dev/role", "value": "worker"}] if role == "worker" else []
        taints += [{"key": "kubernetes.io/arch", "value": "arm64"}] if overlay.on_gke() else []
        for taint in taints:
            if taint | {"operator": "Equal", "effect": "NoSchedule"} not in pod.get("tolerations", []):
                overlay.say(d, f"never runs on nodes with the taint {taint['key']}={taint['value']}:NoSchedule")


def disks(overlay):
    """Terraform sizes the nodes' disks by what a worker asks for, and has to know it."""
    if overlay.on_one_node():
        return
    worker = next(d for d in overlay.of("Deployment") if d["metadata"]["name"] == "worker")
    asked = worker["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"]
    for path in TERRAFORM.glob("*/nodes.tf"):
        known = re.search(r"worker_scratch_gib = (\d+)", path.read_text())
        if not known or f"{known[1]}Gi" != asked:
            overlay.say(worker, f"asks for {asked} of ephemeral storage, and {path} counts with {known and known[1]} GiB")


def restricted(overlay):
    """The Pod Security Standard `restricted`, and a root that cannot be written."""
    for d in overlay.of("Deployment"):
        pod = d["spec"]["template"]["spec"]
        of_pod = pod.get("securityContext", {})
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            overlay.say(d, "shares the host's namespaces")
        if any(not {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"} & v.keys() for v in pod["volumes"]):
            overlay.say(d, "has a volume of a kind that is not allowed")
        for c in containers(d):
            own = of_pod | c.get("securityContext", {})
            holds = {
                "runAsNonRoot": own.get("runAsNonRoot") is True and own.get("runAsUser", 1) != 0,
                "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                "capabilities": own.get("capabilities", {}) == {"drop": ["ALL"]},
                "seccompProfile": own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
                "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
                "resources": "memory" in c.get("resources", {}).get("limits", {}),
            }
            for key in (key for key, held in holds.items() if not held):
                overlay.say(d, f"container {c['name']}: {key} is not as `restricted` wants it")


def settings(overlay, gateway, worker):
    """Variables and flags exist, and times fit into the grace period."""
    config = {o["metadata"]["name"]: o["data"] for o in overlay.of("ConfigMap")}
    for d in overlay.of("Deployment"):
        name = d["metadata"]["name"]
        program = {"gateway": gateway, "worker": worker}[name]
        pod = d["spec"]["template"]["spec"]
        c = next(c for c in pod["containers"] if c["name"] == name)
        said = {v["name"]: v.get("value") for v in c.get("env", [])}
        for source in c.get("envFrom", []):
            said |= config.get(source["configMapRef"]["name"], {})
        for variable in said:
            if variable.startswith("MILLRACE_") and variable not in program.variables:
                overlay.say(d, f"{variable} is no variable of millrace-{name}")
        second = said.get("MILLRACE_SECOND_POOL")
        if name == "worker" and pathlib.Path(overlay.path).name.startswith("dual-") and not second:
            overlay.say(d, "the component sets no MILLRACE_SECOND_POOL")
        if second and (second == said["MILLRACE_POOL"] or f"{second}=" not in said["MILLRACE_OBJECTS"]):
            overlay.say(d, f"MILLRACE_SECOND_POOL is {second}: it must be another pool, whose bucket MILLRACE_OBJECTS names")
        for flag in (a for a in c["args"] if a.startswith("--")):
            if flag not in program.flags:
                overlay.say(d, f"{flag} is no flag of millrace-{name}")
        takes = lambda variable: seconds(said.get(variable) or program.default(variable))
        stop = c.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = pod["terminationGracePeriodSeconds"]
        if name == "gateway":
            needs = stop + takes("MILLRACE_LAME_DUCK") + takes("MILLRACE_DRAIN_TIMEOUT") + ENDING_S
        else:
            release = stop + takes("MILLRACE_GRACE") + FFMPEG_S
            if release >= RELEASE_S_MAX:
                overlay.say(d, f"leases are given back {release} s after the end was said, not within {RELEASE_S_MAX} s")
            if grace > SPOT_S:
                overlay.say(d, f"a grace period of {grace} s is more than a reclaimed node gives")
            needs = release + ENDING_S
        if grace < needs:
            overlay.say(d, f"terminationGracePeriodSeconds is {grace}, and ending takes up to {needs} s")


def main():
    # A newer Kubernetes is not what we validate against.
    warnings.simplefilter("ignore")
    gateway, worker = Program(sys.argv[1]), Program(sys.argv[2])
    wrong = []
    for path in sys.argv[3:]:
        overlay = Overlay(path)
        count = schemas(overlay)
        selectors(overlay)
        references(overlay)
        internal_tls(overlay)
        identities(overlay)
        nodes(overlay)
        disks(overlay)
        restricted(overlay)
        settings(overlay, gateway, worker)
        wrong += overlay.wrong
        print(f"{path}: {len(overlay.objects)} objects, {count} of them by Kubernetes {KUBERNETES}'s schema, strictly: {len(overlay.wrong)} wrong")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
