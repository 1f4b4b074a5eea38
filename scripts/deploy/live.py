"""Runs the programs as the manifests run them, lets a Prometheus scrape them, and asks it every expression that we ship.

    python live.py PROGRAMS LOCAL.yaml EKS.yaml GKE.yaml

PROGRAMS is the directory of millrace-gateway and millrace-worker; the files are rendered overlays. Everything listens on
loopback, in a directory of its own that is gone afterwards. Exits with 1 and a line for each thing that is wrong.
"""

import json
import os
import pwd
import re
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

import expressions
import stand_ins

WORKERS = ["127.0.0.2", "127.0.0.3"]
FAILING = "127.0.0.4"
WITH_TLS = "127.0.0.5"
KEY = "k" * 40
PASSWORD = "p" * 40
PATIENCE_S = 120
# Connections to loopback have no use for a proxy of the environment.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


# What was given out: a port that nobody has taken yet may come twice.
GIVEN = set()


def free_port(host="127.0.0.1"):
    while True:
        with socket.socket() as s:
            s.bind((host, 0))
            port = s.getsockname()[1]
        if port not in GIVEN:
            GIVEN.add(port)
            return port


def ask(url, body=None, method=None, headers=(), timeout=20):
    """Status and body of an answer; status 0 when there is none."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, method=method, headers=dict(headers))
    try:
        with OPENER.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


class Lab:
    def __init__(self, programs, local, eks, gke):
        self.programs = Path(programs).resolve()
        self.rendered = [local, eks, gke]
        self.local, self.eks = ([o for o in yaml.safe_load_all(open(p)) if o] for p in (local, eks))
        self.dir = Path(tempfile.mkdtemp(prefix="millrace-deploy-"))
        self.dir.chmod(0o755)
        self.children = {}
        self.wrong = []
        self.root = os.geteuid() == 0

    # Processes.

    def start(self, name, command, env=(), as_pod=False):
        """A pod's process is nobody in particular, without any capability, and can gain none."""
        if as_pod and self.root:
            command = ["setpriv", "--reuid=65532", "--regid=65532", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", *command]
        log = open(self.dir / f"{name}.log", "ab")
        own = {"PATH": "/usr/bin:/bin:/usr/local/bin", **dict(env)}
        self.children[name] = subprocess.Popen(command, stdout=log, stderr=log, env=own, cwd=self.dir, start_new_session=True)

    def until(self, what, holds, patience=PATIENCE_S):
        """Waits for a condition and answers what it found."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            found = holds()
            if found:
                return found
            for name, child in self.children.items():
                assert child.poll() is None, f"{name} ended with {child.returncode} while we waited: {what}"
            time.sleep(0.2)
        raise AssertionError(f"waited {patience} s in vain: {what}")

    def end(self, name, patience):
        """SIGTERM; answers the exit code and how many seconds it took."""
        child, began = self.children.pop(name), time.monotonic()
        child.send_signal(signal.SIGTERM)
        try:
            return child.wait(patience), time.monotonic() - began
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return None, patience

    def close(self):
        if "postgres" in self.children and self.children["postgres"].poll() is None:
            self.freeze_postgres(signal.SIGCONT)
        for child in self.children.values():
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait()
        if self.wrong:
            for log in sorted(self.dir.glob("*.log")):
                tail = log.read_text(errors="replace").splitlines()[-5:]
                print(f"--- {log.name}", *tail, sep="\n", file=sys.stderr)
        shutil.rmtree(self.dir, ignore_errors=True)

    def own(self, path):
        """Gives a path to the pods' user, as fsGroup does."""
        path.mkdir(parents=True, exist_ok=True)
        if self.root:
            os.chown(path, 65532, 65532)
        return path

    # What the manifests say.

    def container(self, overlay, name):
        d = next(o for o in overlay if o["kind"] == "Deployment" and o["metadata"]["name"] == name)
        pod = d["spec"]["template"]["spec"]
        return pod, next(c for c in pod["containers"] if c["name"] == name)

    def config(self, overlay, name):
        return next(o["data"] for o in overlay if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith(name))

    def worker(self, ip):
        """The local overlay's worker, with directories and addresses of this machine."""
        _, c = self.container(self.local, "worker")
        name = f"worker-{ip[-1]}"
        env = {}
        for source in c["envFrom"]:
            env |= self.config(self.local, re.sub(r"-[a-z0-9]{10}$", "", source["configMapRef"]["name"]))
        env |= {v["name"]: v.get("value", name) for v in c["env"]}
        paths = {"/scratch": self.own(self.dir / f"scratch-{ip[-1]}"), "/data": self.own(self.dir / "data")}
        for key, value in env.items():
            for inside, outside in paths.items():
                value = re.sub(rf"(^|:){inside}\b", rf"\g<1>{outside}", value)
            env[key] = value.replace("0.0.0.0:9000", f"{ip}:{self.worker_port}")
        # The site with inputs is on loopback.
        env["MILLRACE_ALLOW_PRIVATE_SOURCES"] += ",127.0.0.0/8"
        self.start(name, [str(self.programs / "millrace-worker"), *c["args"]], env, as_pod=True)
        self.until(f"{name} is ready", lambda: ask(f"http://{ip}:{self.worker_port}/readyz")[0] == 200)

    def issue(self):
        """Does what cert-manager and External Secrets do: the secrets of the component internal-tls."""
        place = self.dir / "issued"
        place.mkdir()
        openssl = lambda *arguments: subprocess.run(["openssl", *arguments], cwd=place, check=True, capture_output=True)
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-x509", *key, "-days", "30", "-subj", "/CN=internal", "-keyout", "ca.key", "-out", "ca.pem")
        authority = {"ca.pem": (place / "ca.pem").read_text()}

        def leaf(name, extensions):
            (place / "extensions").write_text("\n".join(["basicConstraints=CA:FALSE", "keyUsage=digitalSignature", *extensions]))
            openssl("req", *key, "-subj", f"/CN={name}", "-keyout", "tls.key", "-out", "tls.csr")
            openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30", "-extfile", "extensions", "-out", "tls.crt")
            return {n: (place / n).read_text() for n in ("tls.crt", "tls.key")}

        # The store's own authority may be any; here it is the same.
        self.secrets = {"internal-trust": authority, "store-authority": authority, "worker-store": {"password": PASSWORD}}
        self.store_tls = leaf("store", ["extendedKeyUsage=serverAuth", "subjectAltName=IP:127.0.0.1"])
        for o in self.eks:
            if o["kind"] != "Certificate" or o["spec"]["issuerRef"]["kind"] != "Issuer":
                continue
            spec = o["spec"]
            usages = {"digital signature": None, "server auth": "serverAuth", "client auth": "clientAuth"}
            extensions = ["extendedKeyUsage=" + ",".join(filter(None, (usages[u] for u in spec["usages"])))]
            if "dnsNames" in spec:
                extensions.append("subjectAltName=" + ",".join(f"DNS:{n}" for n in spec["dnsNames"]))
            (place / "extensions").write_text("\n".join(extensions))
            self.secrets[spec["secretName"]] = leaf(spec.get("commonName", "none"), extensions)
            if spec["secretName"] == "worker-tls":
                self.secrets["another worker's"] = leaf("another", extensions)

    def project(self, pod, container, place):
        """Writes the projected secrets and configurations that there are to where a container mounts them, with `place` for /etc/millrace."""
        volumes = {v["name"]: v.get("projected", {}).get("sources", []) for v in pod["volumes"]}
        for mount in container["volumeMounts"]:
            for source in volumes[mount["name"]]:
                for name, text in self.secrets.get((source.get("secret") or source.get("configMap") or {}).get("name"), {}).items():
                    file = place / mount["mountPath"].removeprefix("/etc/millrace/") / name
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(text)

    def postgres(self):
        """A Postgres that wants TLS and a password, as the clouds' do; answers its port."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
        found = found or [Path(p) for p in [shutil.which("initdb")] if p]
        assert found, "there is no initdb: scripts/setup test installs PostgreSQL's programs"
        place = self.dir / "postgres"
        place.mkdir(mode=0o700)
        for name, text in {**self.store_tls, "password": PASSWORD}.items():
            (place / name).write_text(text)
            (place / name).chmod(0o600)
        # It refuses to run as root, and wants a user that the system knows.
        user = pwd.getpwnam("nobody")
        become = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        become = ["setpriv", *become] if self.root else []
        if self.root:
            for path in (place, *place.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        made = [*become, str(found[-1]), "-D", str(place / "data"), "--auth=scram-sha-256", "--username=millrace", f"--pwfile={place}/password", "--no-sync", "--no-locale", "--encoding=UTF8"]
        subprocess.run(made, check=True, capture_output=True, cwd=place)
        with open(place / "data/pg_hba.conf", "w") as rights:
            rights.write("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        port = free_port()
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": "", "ssl": "on", "ssl_cert_file": place / "tls.crt", "ssl_key_file": place / "tls.key", "fsync": "off"}
        said = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self.start("postgres", [*become, str(found[-1].parent / "postgres"), "-D", str(place / "data"), *said])

        def listens():
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", port)) == 0

        self.until("Postgres listens", listens)
        return port

    def freeze_postgres(self, how):
        """The signal to each of its processes: the ones that serve connections are sessions of their own."""
        pid = self.children["postgres"].pid
        for one in (pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())):
            os.kill(one, how)

    def worker_with_tls(self, store):
        """The overlay eks's worker with the store on that port, and its own objects' places, which nothing asks here."""
        pod, c = self.container(self.eks, "worker")
        place, data = self.dir / "worker-tls", self.own(self.dir / "data-tls")
        self.project(pod, c, place)
        # The shipped file, and a token as the kubelet would project it.
        (place / "objects").mkdir()
        (place / "objects/gcs.json").write_text(self.config(self.eks, "google-identity")["gcs.json"].replace("/etc/millrace/", f"{place}/"))
        (place / "objects/token").write_text("header.payload.signature")
        env = dict(self.config(self.eks, "worker-settings"))
        env |= {v["name"]: v.get("value", "worker-tls") for v in c["env"]}
        # As docs/deploy.md puts it into the secret manager.
        env["MILLRACE_STORE"] = f"postgres://millrace@127.0.0.1:{store}/postgres?sslmode=verify-full&sslrootcert=/etc/millrace/store/ca.pem"
        env = {k: v.replace("/etc/millrace/", f"{place}/") for k, v in env.items()}
        port = free_port(WITH_TLS)
        env |= {"MILLRACE_SCRATCH": str(data / "scratch"), "TMPDIR": str(data), "MILLRACE_LISTEN": f"{WITH_TLS}:{port}"}
        # Nothing leaves this machine.
        env |= {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
        self.start("worker-tls", [str(self.programs / "millrace-worker"), *c["args"]], env, as_pod=True)
        # The image has the program where ours is not.
        self.probes = {n: [str(self.programs / "millrace-worker"), *c[n]["exec"]["command"][1:]] for n in ("startupProbe", "livenessProbe", "readinessProbe")}
        self.probed_as = {"PATH": "/usr/bin:/bin", **env}
        for name in self.probes:
            self.until(f"the {name} of the worker with TLS holds", lambda: self.probe(name) is None)
        return port

    def probe(self, name, **changed):
        """What the probe of the worker with TLS says that is wrong, if anything."""
        done = subprocess.run(self.probes[name], env={**self.probed_as, **changed}, capture_output=True, text=True)
        return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"

    def ask_with(self, secret, port):
        """The status of a worker's /metrics with TLS to who shows a certificate, or what the two sides say to each other."""
        monitor = next(o for o in self.eks if o["kind"] == "PodMonitor")["spec"]["podMetricsEndpoints"][0]["tlsConfig"]
        context = ssl.create_default_context(cadata=self.secrets[monitor["ca"]["secret"]["name"]][monitor["ca"]["secret"]["key"]])
        if secret:
            for name, text in self.secrets[secret].items():
                (self.dir / name).write_text(text)
            context.load_cert_chain(self.dir / "tls.crt", self.dir / "tls.key")
        try:
            with socket.create_connection((WITH_TLS, port), timeout=10) as plain:
                with context.wrap_socket(plain, server_hostname=monitor["serverName"]) as s:
                    s.sendall(b"GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
                    return int(s.recv(64).split(b" ")[1])
        except (OSError, IndexError) as error:
            return str(error)

    def internal_tls(self, port):
        """Workers of the cloud serve gateways and Prometheus, and nobody else but themselves."""
        healthy = lambda: re.search(r"^millrace_gateway_endpoint_healthy\{[^}]*127\.0\.0\.5[^}]*\} 1", ask(f"http://127.0.0.1:{self.gateways[1]['metrics']}/metrics")[1].decode(), re.M)
        self.until("the gateway of eks finds the worker with TLS healthy", healthy)
        monitor = next(o for o in self.eks if o["kind"] == "PodMonitor")["spec"]["podMetricsEndpoints"][0]["tlsConfig"]
        found = {who: self.ask_with(who, port) for who in (monitor["cert"]["secret"]["name"], None, "another worker's")}
        if found.pop(monitor["cert"]["secret"]["name"]) != 200:
            self.wrong.append("Prometheus's certificate does not open a worker's metrics")
        for who, answer in found.items():
            if isinstance(answer, int):
                self.wrong.append(f"a worker answers {answer} to who shows {who or 'nothing'}")
        for name, text in self.secrets["another worker's"].items():
            (self.dir / name).write_text(text)
        stranger = self.probe("readinessProbe", MILLRACE_TLS_CERTIFICATE=str(self.dir / "tls.crt"), MILLRACE_TLS_KEY=str(self.dir / "tls.key"))
        if not stranger or "no TLS with it" not in stranger:
            self.wrong.append(f"a probe with another worker's certificate says {stranger}")
        # Frozen as a whole: it still has its listener, which a probe that only connects would find.
        self.children["worker-tls"].send_signal(signal.SIGSTOP)
        frozen = self.probe("livenessProbe")
        self.children["worker-tls"].send_signal(signal.SIGCONT)
        if not frozen or "no answer within" not in frozen:
            self.wrong.append(f"a probe of a frozen worker says {frozen}")
        # Its store is away: alive, and not ready.
        self.freeze_postgres(signal.SIGSTOP)
        storeless = self.until("a worker without its store is unready", lambda: self.probe("readinessProbe"), 20)
        if "with 503" not in storeless or self.probe("livenessProbe"):
            self.wrong.append(f"without its store the probes say {storeless}, {self.probe('livenessProbe')}")
        self.freeze_postgres(signal.SIGCONT)
        self.until("and ready when it is back", lambda: self.probe("readinessProbe") is None)
        self.say(f"TLS to a worker of eks, which keeps its jobs in a Postgres with TLS and a password: gateway, Prometheus and its own probes are served; with no certificate, {found[None]}; with another worker's, {next(v for k, v in found.items() if k)}")
        self.say(f"probes of that worker: frozen, {frozen.split(': ', 1)[1]}; without its store, {storeless.split(' answers ', 1)[1]}")

    def gateway(self, overlay, name, api):
        """A gateway. The routing file is mounted as a kubelet does it."""
        pod, c = self.container(overlay, "gateway")
        http, https, admin, metrics = (free_port() for _ in range(4))
        text = self.config(overlay, "routing")["routing.toml"]
        text = text.replace("0.0.0.0:8080", f"127.0.0.1:{http}").replace("0.0.0.0:8443", f"127.0.0.1:{https}")
        text = text.replace("127.0.0.1:8081", f"127.0.0.1:{admin}").replace("0.0.0.0:9102", f"127.0.0.1:{metrics}")
        text = text.replace('port = "http" }', f'port = "http", api = "127.0.0.1:{api}" }}')
        place = self.dir / name
        text = text.replace("/etc/millrace/", f"{place}/")
        if "tls" in [m["name"] for m in c["volumeMounts"]]:
            (place / "tls").mkdir(parents=True)
            (place / "keys").mkdir()
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=localhost",
                 "-addext", "subjectAltName=DNS:localhost", "-keyout", place / "tls/tls.key", "-out", place / "tls/tls.crt"],
                check=True, capture_output=True)
            (place / "tls/tls.key").chmod(0o644)
            digest = subprocess.run(["sha256sum"], input=KEY.encode(), capture_output=True, check=True).stdout.split()[0].decode()
            (place / "keys/keys.txt").write_text(f"check creator acme {digest}\n")
        self.project(pod, c, place)
        self.mount(place / "routing", text, "one")
        args = [a.replace("/etc/millrace/", f"{place}/") for a in c["args"]]
        program = str(self.programs / "millrace-gateway")
        checked = subprocess.run([program, "check", args[-1]], capture_output=True, text=True)
        if checked.returncode != 0:
            self.wrong.append(f"{name}: its routing file is refused: {checked.stderr}")
        self.start(name, [program, *args], as_pod=True)
        url = f"http://127.0.0.1:{http}"
        ports = {"http": http, "metrics": metrics}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asks = c[probe]["httpGet"]
            self.until(f"the {probe} of {name} holds", lambda: ask(f"http://127.0.0.1:{ports[asks['port']]}{asks['path']}")[0] == 200)
        for path, method in (("/status", "GET"), ("/drain", "POST"), ("/metrics/../drain", "POST")):
            status, _ = ask(f"http://127.0.0.1:{metrics}{path}", method=method)
            if status not in (404, 405):
                self.wrong.append(f"{name}: the metrics listener answers {method} {path} with {status}")
        return {"url": url, "https": f"https://127.0.0.1:{https}", "metrics": metrics, "text": text, "place": place}

    @staticmethod
    def mount(directory, text, version):
        """A ConfigMap's directory: new files beside the old, and one link that is swapped."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"..{version}").mkdir()
        (directory / f"..{version}" / "routing.toml").write_text(text)
        (directory / "..data_tmp").symlink_to(f"..{version}")
        (directory / "..data_tmp").rename(directory / "..data")
        if not (directory / "routing.toml").is_symlink():
            (directory / "routing.toml").symlink_to("..data/routing.toml")

    def prometheus(self):
        self.prometheus_url = f"http://127.0.0.1:{free_port()}"
        gateways = [{"targets": [f"127.0.0.1:{g['metrics']}"], "labels": {"endpoint": "metrics"}} for g in self.gateways]
        workers = [{"targets": [f"{ip}:{self.worker_port}" for ip in WORKERS]}]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(Path("k8s/alerts/millrace.rules.yaml").resolve())],
            "scrape_configs": [
                {"job_name": "millrace-gateway", "honor_labels": True, "static_configs": gateways},
                {"job_name": "millrace-worker", "static_configs": workers},
            ],
        }
        (self.dir / "prometheus.yml").write_text(json.dumps(config))
        address = self.prometheus_url.removeprefix("http://")
        self.start("prometheus", ["prometheus", f"--config.file={self.dir}/prometheus.yml", f"--storage.tsdb.path={self.dir}/tsdb", f"--web.listen-address={address}"])
        self.until("Prometheus is ready", lambda: ask(f"{self.prometheus_url}/-/ready")[0] == 200)

    def query(self, text):
        """The result of an instant query."""
        status, body = ask(f"{self.prometheus_url}/api/v1/query?" + urllib.parse.urlencode({"query": text}))
        answer = json.loads(body)
        if status != 200:
            raise ValueError(answer.get("error"))
        return answer["data"]["result"]

    # What happens.

    def submit(self, name, path="/clip.mp4", gateway=0, **spec):
        spec = {"input_url": f"http://127.0.0.1:{self.site}{path}", "job_id": name, **spec}
        return ask(f"{self.gateways[gateway]['url']}/process", spec, headers={"content-type": "application/json"})[0]

    def job(self, name):
        status, body = ask(f"{self.gateways[0]['url']}/jobs/{name}")
        return json.loads(body) if status == 200 else {}

    def set_up(self):
        made = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=s=1280x720:r=25:d=12", "-f", "lavfi", "-i", "sine=d=12", "-c:v", "libx264",
                "-preset", "ultrafast", "-c:a", "aac", str(self.dir / "clip.mp4")]
        subprocess.run(made, check=True)
        self.worker_port = free_port(WORKERS[0])
        self.api, self.api_broken = stand_ins.api_server([*WORKERS, FAILING], self.worker_port)
        self.site = stand_ins.site((self.dir / "clip.mp4").read_bytes())
        for ip in WORKERS:
            self.worker(ip)
        report = json.loads(ask(f"http://{WORKERS[0]}:{self.worker_port}/load")[1])
        self.failing_down = stand_ins.failing_worker(FAILING, self.worker_port, report)
        self.issue()
        port = self.worker_with_tls(self.postgres())
        api_of_eks, _ = stand_ins.api_server([WITH_TLS], port)
        self.gateways = [self.gateway(self.local, "gateway-local", self.api), self.gateway(self.eks, "gateway-eks", api_of_eks)]
        self.internal_tls(port)
        self.prometheus()
        self.say("three workers, a gateway of the overlay local and one of eks (TLS, keys) run, non-root and without capabilities")

    def say(self, what):
        print(f"live: {what}", flush=True)

    def traffic(self):
        """Everything that a family is for happens once."""
        for n in range(2):
            assert self.submit(f"good-{n}", resolutions=["360p"]) in (200, 202), "a submit is refused"
        assert self.submit("bad", path="/trickle-none", input_url="http://127.0.0.1:9/none.mp4") == 202
        self.until("two jobs succeed and one fails", lambda: [self.job(j).get("state") for j in ("good-0", "good-1")] == ["succeeded"] * 2)
        _, page = ask(f"{self.gateways[0]['url']}/media/good-0/master.m3u8")
        assert page.startswith(b"#EXTM3U"), "the playlist cannot be read"
        # All slots wait for a film that never comes, and all queues are full.
        statuses = [self.submit(f"slow-{n}", "/trickle") for n in range(60)]
        assert 429 in statuses, f"60 slow jobs and no refusal: {statuses}"
        self.until("an ejection", lambda: self.query("sum(millrace_gateway_ejections_total) > 0"))
        self.failing_down.set()

        def seen(query):
            """All that is left is full."""
            statuses.append(self.submit(f"slow-{len(statuses)}", "/trickle"))
            return self.query(query)

        refusals = 'millrace_gateway_routing_refusals_total{reason=~"saturated|exhausted"}'
        self.until("a refusal for want of room", lambda: seen(f"{refusals} > 0"))
        # Of a counter that is born with a value, Prometheus knows no increase.
        self.until("Prometheus sees refusals grow", lambda: seen(f"increase({refusals}[2m]) > 0"))
        backlog = lambda: self.query('max(millrace_worker_pool_work_seconds{pool="local"}) > 120')
        self.until("Prometheus sees the backlog", backlog)
        scaled = {e.where.split(", ")[-1]: float(self.query(e.text)[0]["value"][1]) for e in expressions.scaled_objects(self.rendered[1:2])}
        assert scaled["backlog"] > 240 and scaled["wanted"] == 1, f"the autoscaler would see {scaled}"
        self.say(f"with {len([s for s in statuses if s == 202])} jobs waiting the autoscaler would want {scaled['backlog'] / 120:.0f} workers, and wake a pool of none")
        # Clients of the other gateway without a key.
        ask(f"{self.gateways[1]['url']}/jobs")
        # The API server is away for a moment.
        self.api_broken.set()
        self.until("failed lookups are seen", lambda: self.query('millrace_gateway_discovery_lookups_total{result="failed"} > 0'))
        self.api_broken.clear()
        # The store is away for longer than its clients wait.
        store = sqlite3.connect(self.dir / "data/jobs.db", timeout=30, isolation_level=None)
        store.execute("BEGIN EXCLUSIVE")
        firing = lambda: [a["metric"]["alertname"] for a in self.query('ALERTS{alertname="MillraceStoreUnreachable"}')]
        try:
            self.until("the alert on the store is at least pending", firing, 60)
        finally:
            store.execute("ROLLBACK")
            store.close()
        waiting = [f"slow-{n}" for n, status in enumerate(statuses) if status in (200, 202)]

        def cancelled(name):
            ask(f"{self.gateways[0]['url']}/jobs/{name}", method="DELETE")
            return self.job(name).get("state") == "cancelled"

        self.until("what waits is cancelled", lambda: all([cancelled(name) for name in waiting]))

    def reloads(self):
        """An edit of the ConfigMap arrives; a bad one is refused and seen."""
        gateway = self.gateways[0]
        shown = lambda name: float(re.search(rf"^millrace_gateway_{name} (\S+)", ask(f"http://127.0.0.1:{gateway['metrics']}/metrics")[1].decode(), re.M)[1])
        self.mount(gateway["place"] / "routing", gateway["text"].replace('name = "local"', 'name = "local"\nweight = 2.0'), "two")
        self.until("the new routing file is in force", lambda: shown("config_reload_generation") == 2, 10)
        self.mount(gateway["place"] / "routing", gateway["text"].replace("[listen]", "[listen"), "three")
        self.until("the bad routing file is refused", lambda: shown("config_reload_success") == 0, 10)
        self.until("Prometheus sees it", lambda: self.query('ALERTS{alertname="MillraceReloadFailed"}'))
        self.mount(gateway["place"] / "routing", gateway["text"], "four")
        self.until("the old one again", lambda: shown("config_reload_success") == 1, 10)
        self.say("a swapped ConfigMap is in force within seconds, a bad one is refused and makes its alert pending")

    def sigterm(self):
        """Both programs end within their pods' grace period, and nothing is lost."""
        pod, _ = self.container(self.local, "worker")
        assert self.submit("moved") in (200, 202)
        owner = self.until("the job is being encoded", lambda: self.job("moved").get("phase") == "encoding" and self.job("moved")["worker"])
        code, took = self.end(owner, pod["terminationGracePeriodSeconds"])
        if code != 0 or took > pod["terminationGracePeriodSeconds"]:
            self.wrong.append(f"{owner} ended with {code} after {took:.1f} s, with a job running")
        other = self.until("another worker goes on", lambda: self.job("moved").get("worker") not in (owner, None) and self.job("moved"))
        ended = self.until("the job ends", lambda: self.job("moved").get("state") in ("succeeded", "failed", "dead") and self.job("moved"))
        if ended["state"] != "succeeded":
            self.wrong.append(f"the job that was moved has {ended['state']}")
        self.say(f"SIGTERM to a worker that encodes: gone after {took:.1f} s of {pod['terminationGracePeriodSeconds']}; {other['worker']} ended its job")
        self.uploads_survive()
        # What clients get when nobody is left.
        self.end(ended["worker"], 15)
        self.until("a submit fails", lambda: self.submit("nobody") >= 500)
        growing = lambda: self.submit("nobody") and self.query("millrace:request_errors:ratio_rate3d > 0 and millrace:request_errors:ratio_rate5m > 0")
        self.until("the share of failed requests is recorded", growing)
        self.until("failed probes are seen", lambda: self.query("sum(millrace_gateway_probe_failures_total) > 0"))

    def uploads_survive(self):
        """An upload that a gateway was in the middle of when it was asked to end is stored."""
        pod, _ = self.container(self.local, "gateway")
        url = self.gateways[0]["url"]
        ticket = json.loads(ask(f"{url}/upload/request", {"filename": "a.mp4", "content_type": "video/mp4"}, headers={"content-type": "application/json"})[1])
        path = urllib.parse.urlsplit(ticket["upload_url"])
        answer = []

        def upload():
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=60) as s:
                s.sendall(f"PUT {path.path}?{path.query} HTTP/1.1\r\nHost: {path.netloc}\r\nContent-Length: 20480\r\n\r\n".encode())
                for _ in range(20):
                    s.sendall(b"x" * 1024)
                    time.sleep(0.2)
                answer.append(s.recv(200).split(b"\r\n")[0].decode())

        sending = threading.Thread(target=upload)
        sending.start()
        time.sleep(1)
        code, took = self.end("gateway-local", pod["terminationGracePeriodSeconds"])
        sending.join()
        if code != 0 or not answer or " 2" not in answer[0]:
            self.wrong.append(f"the gateway ended with {code} after {took:.1f} s, and the upload under way was answered {answer}")
        self.say(f"SIGTERM to a gateway in the middle of an upload: {answer}, gone after {took:.1f} s of {pod['terminationGracePeriodSeconds']}")
        # Back for what is still to be asked.
        g = self.gateways[0]
        self.start("gateway-local", [str(self.programs / "millrace-gateway"), "run", "--config", str(g["place"] / "routing/routing.toml")], as_pod=True)
        self.until("the gateway is back", lambda: ask(f"{url}/readyz")[0] == 200)

    def evaluate(self):
        """Every expression parses, is taken by Prometheus, and reads series that exist, by labels that they have."""
        every = [*expressions.dashboards("k8s/dashboards"), *expressions.rules("k8s/alerts/millrace.rules.yaml"), *expressions.scaled_objects(self.rendered[1:])]
        series, empty = {}, 0
        for e in every:
            for selector in e.selectors:
                if selector not in series:
                    series[selector] = [r["metric"] for r in self.query(f"last_over_time({selector}[10m])")]
                if not series[selector]:
                    self.wrong.append(f"{e.where}: nothing on the running programs is {selector}")
            for label, beneath in e.labels:
                if not any(label in metric for s in beneath for metric in series[s]):
                    self.wrong.append(f"{e.where}: no series beneath `by ({label})` has that label")
            try:
                empty += not self.query(e.text)
            except ValueError as error:
                self.wrong.append(f"{e.where}: Prometheus refuses {e.text}: {error}")
        names = {m.get("__name__") for found in series.values() for m in found}
        # What documents tell operators to look at.
        exist = set(json.loads(ask(f"{self.prometheus_url}/api/v1/label/__name__/values")[1])["data"])
        # A family with labels has no series before it counts something, and copies to another cloud take two. Of those the
        # programs' own text is asked.
        for program in ("worker", "gateway"):
            made = re.findall(r'"([a-z0-9_]+)"', Path(program, "src/metrics.rs").read_text())
            exist |= {f"millrace_{program}_{name}" for name in made}
        for page in sorted(Path("docs").glob("*.md")):
            for name in set(re.findall(r"\bmillrace_(?:gateway|worker)_\w+", page.read_text())) - exist:
                self.wrong.append(f"{page}: nothing on the running programs is {name}")
        self.say(f"{len(every)} expressions with {len(series)} selectors over {len(names)} families; {empty} have no value just now, as a quiet alert has none")


def main():
    lab = Lab(*sys.argv[1:5])
    try:
        lab.set_up()
        lab.traffic()
        lab.reloads()
        lab.sigterm()
        lab.evaluate()
    except AssertionError as error:
        lab.wrong.append(str(error))
    finally:
        lab.close()
    print(*lab.wrong, sep="\n", file=sys.stderr)
    return 1 if lab.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
