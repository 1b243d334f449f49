"""What stands in deploy/: valid, in step with the rest of the repository, without a secret."""

import copy
import json
import re
import shlex
import subprocess
import tomllib
from importlib.resources import files

import click
import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from explorer.cli import app
from tests.deploy.conftest import DEPLOY, ROOT

KUBERNETES = "1.33"
# Fields of ray.io/v1 that are used here, of those that there are, with their types.
# Source: KubeRay v1.7.0, CRD API reference, https://docs.ray.io/en/master/cluster/kubernetes/.
CLUSTER_FIELDS = {
    "rayVersion": str,
    "authOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
HEAD_FIELDS = {"rayStartParams": dict, "template": dict}
WORKER_FIELDS = {
    **HEAD_FIELDS,
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
}
SPEC_FIELDS = {
    "RayCluster": CLUSTER_FIELDS,
    "RayJob": {
        "entrypoint": str,
        "submissionMode": str,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "rayClusterSpec": dict,
    },
    "RayService": {"serveConfigV2": str, "rayClusterConfig": dict},
}
CLUSTER_OF = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")

COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DOCUMENTS = [
    document
    for path in sorted(DEPLOY.glob("kubernetes/*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]
LAUNCHER = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
README = (DEPLOY / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def name_of(document):
    return f"{document['kind']}-{document['metadata']['name']}"


def pinned(package):
    return re.search(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)[1]


def cluster_of(document):
    """The Ray cluster's spec in one of KubeRay's objects."""
    key = CLUSTER_OF.get(document["kind"])
    return document["spec"][key] if key else document["spec"]


def pod_templates(document):
    """The pod templates of an object, with the name of each."""
    if document["kind"] in SPEC_FIELDS:
        cluster = cluster_of(document)
        groups = {"head": cluster["headGroupSpec"]}
        groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
        return {name: group["template"] for name, group in groups.items()}
    template = document.get("spec", {}).get("template")
    return {"pod": template} if template else {}


RAY_DOCUMENTS = [document for document in DOCUMENTS if document["kind"] in SPEC_FIELDS]
PODS = {
    f"{name_of(document)}-{name}": template["spec"]
    for document in DOCUMENTS
    for name, template in pod_templates(document).items()
}


def texts(value):
    """Every text in nested data."""
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [text for one in values for text in texts(one)] if isinstance(value, dict | list) else []


# Specifications


def compose_schema():
    resource = files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    return json.loads(resource.read_text())


@pytest.mark.parametrize("name", ["docker-compose.yaml", "docker-compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name):
    document = yaml.safe_load((DEPLOY / name).read_text())
    jsonschema.validate(document, compose_schema())
    document["services"]["ray-worker"]["imag"] = "a"
    with pytest.raises(jsonschema.ValidationError, match="imag"):
        jsonschema.validate(document, compose_schema())


@pytest.mark.parametrize(
    "document",
    [document for document in DOCUMENTS if document["kind"] not in SPEC_FIELDS],
    ids=name_of,
)
def test_kubernetes_objects_follow_their_schemas(document):
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    spoiled = {**copy.deepcopy(document), "sepc": {}}
    with pytest.raises(kubernetes_validate.ValidationError, match="sepc"):
        kubernetes_validate.validate(spoiled, KUBERNETES, strict=True)


def require_fields(given, fields, where):
    unknown = given.keys() - fields.keys()
    assert not unknown, f"{where}: {unknown}"
    wrong = {key for key, value in given.items() if type(value) is not fields[key]}
    assert not wrong, f"{where}: {wrong}"


@pytest.mark.parametrize("document", RAY_DOCUMENTS, ids=name_of)
def test_kuberay_objects_have_the_fields_of_their_types(document):
    assert document["apiVersion"] == "ray.io/v1"
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    require_fields(document["spec"], SPEC_FIELDS[document["kind"]], "spec")
    assert document["spec"].get("submissionMode", "HTTPMode") in SUBMISSION_MODES
    cluster = cluster_of(document)
    assert cluster.keys() == CLUSTER_FIELDS.keys()
    require_fields(cluster, CLUSTER_FIELDS, "cluster")
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert cluster["headGroupSpec"].keys() == HEAD_FIELDS.keys()
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == WORKER_FIELDS.keys()
        require_fields(group, WORKER_FIELDS, group["groupName"])
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(type(value) is str for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "a"}}
        kubernetes_validate.validate(
            {**pod, "template": group["template"]}, KUBERNETES, strict=True
        )


def test_serve_configuration_is_one_that_ray_serve_deploys(tmp_path):
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as built
    from ray.serve.schema import ServeDeploySchema

    from explorer import serving

    (service,) = [one for one in RAY_DOCUMENTS if one["kind"] == "RayService"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "explorer.serving:application"
    token_file = tmp_path / "service_token"
    token_file.write_text("0123456789abcdef")
    token_file.chmod(0o440)  # as Kubernetes mounts it
    assert built(serving.application, {**application.args, "token_file": str(token_file)})
    ports = {
        port["containerPort"]: name
        for name, pod in PODS.items()
        if name.startswith("RayService")
        for port in pod["containers"][0]["ports"]
    }
    assert config.http_options.port in ports


def test_launcher_file_follows_rays_schema(capsys):
    validate_config(prepare_config(copy.deepcopy(LAUNCHER)))
    with pytest.raises(jsonschema.ValidationError, match="head_up"):
        validate_config(prepare_config({**LAUNCHER, "head_up": "a"}))
    local = LAUNCHER["file_mounts"].values()
    made = [path for path in local if path.startswith("deploy/secrets/")]
    assert all((ROOT / path).exists() for path in local if path not in made)


# Versions


def test_versions_are_those_of_the_repository():
    for document in RAY_DOCUMENTS:
        assert cluster_of(document)["rayVersion"] == pinned("ray")
    torch = re.search(r"^TORCH := torch==(.+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert torch == pinned("torch")
    images = {service["image"] for service in SERVICES.values()}
    images |= {one["image"] for pod in PODS.values() for one in pod["containers"]}
    ours = {image for image in images if image.startswith("pareto-explorer:")}
    assert ours == {f"{PROJECT['name']}:{PROJECT['version']}"}
    assert f"-t {PROJECT['name']}:{PROJECT['version']} " in DOCKERFILE
    images |= set(re.findall(r"^FROM (\S+:\S+)", DOCKERFILE, re.M))
    assert {image.partition(":")[0] for image in images} == {
        "chrislusf/seaweedfs",
        "pareto-explorer",
        "postgres",
        "python",
    }
    for image in images:
        assert re.fullmatch(r".+:\d+\.\d+(\.\d+)?(-[a-z-]+)?", image), image


def test_dockerfile_copies_what_there_is_and_installs_extras_that_exist():
    wanted = set(re.search(r"whl\)\[(.+)\]", DOCKERFILE)[1].split(","))
    assert wanted <= PROJECT["optional-dependencies"].keys()
    copied = {
        part
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
        for part in line.split()
    }
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((ROOT / path).exists() for path in copied)
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M)[-1] == "1000:1000"
    assert re.search(r"^FROM python:(3\.\d+)\.", DOCKERFILE, re.M)[1] == "3.11"


# Secrets


def test_compose_names_secrets_that_make_secrets_writes(secrets_dir):
    declared = COMPOSE["secrets"]
    assert {name: secret["file"] for name, secret in declared.items()} == {
        path.name: f"secrets/{path.name}" for path in secrets_dir.iterdir()
    }
    for name, service in SERVICES.items():
        used = {path for text in texts(service) for path in re.findall(r"/run/secrets/(\w+)", text)}
        assert used == set(service.get("secrets", ())), name
    modes = {path.stat().st_mode & 0o777 for path in secrets_dir.iterdir()}
    assert modes == {0o400}
    before = {path: path.read_text() for path in secrets_dir.iterdir()}
    subprocess.run([DEPLOY / "make-secrets.sh", secrets_dir], check=True, capture_output=True)
    assert {path: path.read_text() for path in secrets_dir.iterdir()} == before
    assert len(set(before.values())) == len(before)


def test_kubernetes_names_secrets_that_the_readme_makes():
    made = {
        name: re.findall(r"--from-file=(\w+)=deploy/secrets/(\w+)", rest)
        for name, rest in re.findall(r"create secret generic (\S+)(.+)$", README, re.M)
    }
    used = {cluster_of(document)["authOptions"]["secretName"] for document in RAY_DOCUMENTS}
    for pod in PODS.values():
        used |= {one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
        for container in pod["containers"]:
            for source in container.get("envFrom", ()):
                used |= {source["secretRef"]["name"]} if "secretRef" in source else set()
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    used.add(reference["name"])
                    assert reference["key"] in dict(made[reference["name"]])
    assert used == made.keys()
    assert {name for files in made.values() for _, name in files} <= COMPOSE["secrets"].keys()


SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|CREDENTIALS", re.I)


def test_no_secret_stands_in_a_file():
    variables = [pair for one in SERVICES.values() for pair in one.get("environment", {}).items()]
    for pod in PODS.values():
        for container in pod["containers"]:
            variables += [(one["name"], one.get("value", "")) for one in container.get("env", ())]
    for document in DOCUMENTS:
        assert document["kind"] != "Secret"
        variables += document.get("data", {}).items()
    for name, value in variables:
        assert not SECRET_NAME.search(name) or not value or value.startswith("/run/secrets/"), name
    ignored = ["git", "check-ignore", "--quiet", "deploy/secrets/ray_token"]
    assert subprocess.run(ignored, cwd=ROOT, check=False).returncode == 0


def test_no_file_holds_a_password_in_a_uri_or_a_key():
    for path in DEPLOY.rglob("*"):
        if path.is_file() and "secrets" not in path.relative_to(DEPLOY).parts:
            text = path.read_text()
            assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), path
            assert not re.search(r"\b[0-9a-f]{16,}\b|\bA[KS]IA[0-9A-Z]{16}\b", text), path


# Running


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_restricted_limited_and_watched(name):
    service = SERVICES[name]
    assert service["user"] == "1000:1000"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    writable = [
        one if isinstance(one, str) else one["target"] for one in service.get("volumes", ())
    ]
    assert "/tmp" in [*writable, *service.get("tmpfs", ())]
    if name == "buckets":
        assert service["restart"] == "on-failure:5"
    else:
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"][0] == "CMD"
    for other, wanted in service.get("depends_on", {}).items():
        ends = "healthcheck" not in SERVICES[other]
        assert wanted["condition"] == (
            "service_completed_successfully" if ends else "service_healthy"
        )


@pytest.mark.parametrize("name", PODS)
def test_pods_are_restricted_and_limited(name):
    pod = PODS[name]
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 1000)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    volumes = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for kind in ("requests", "limits"):
            assert container["resources"][kind].keys() == {"cpu", "memory"}
        mounts = container["volumeMounts"]
        assert "/tmp" in [mount["mountPath"] for mount in mounts]
        assert {mount["name"] for mount in mounts} - {"data"} <= volumes
        if not name.startswith("Ray"):  # those have KubeRay's
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()


# Command lines


def shell_commands():
    """Every command line that is started or that the README names, with where it stands."""
    for name, service in SERVICES.items():
        command = service.get("command", [])
        if command[:2] == ["sh", "-c"]:
            command = shlex.split(command[2].replace("$$", "$").partition("exec ")[2])
        yield name, command
    for name, pod in PODS.items():
        for container in pod["containers"]:
            yield name, container.get("command", [])
    for document in RAY_DOCUMENTS:
        yield name_of(document), shlex.split(document["spec"].get("entrypoint", ""))
        cluster = cluster_of(document)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            head = ["--head"] if group is cluster["headGroupSpec"] else ["--address=head:6379"]
            params = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
            yield name_of(document), ["ray", "start", *head, *params]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        yield key, ["ray", "start", *shlex.split(LAUNCHER[key][-1].partition("ray start")[2])]
    for block in re.findall(r"```\n(.+?)```", README, re.S):
        for line in block.splitlines():
            words = shlex.split(line.removesuffix("&"))
            starts = [
                index
                for index, word in enumerate(words)
                if word == "explorer" and words[index - 1] != "-n"
            ]
            yield "README", words[starts[0] :] if starts else []


PROGRAMS = {
    ("ray", "start"): ray_start,
    ("explorer",): typer.main.get_command(app),
    ("python", "-m", "explorer"): typer.main.get_command(app),
}
COMMANDS = [
    pytest.param(program, command[len(words) :], id=f"{where}: {' '.join(command)}")
    for where, command in shell_commands()
    for words, program in PROGRAMS.items()
    if tuple(command[: len(words)]) == words
]


def test_command_lines_are_found():
    programs = [param.values[0] for param in COMMANDS]
    assert programs.count(ray_start) == 2 + 2 * len(RAY_DOCUMENTS) + 2
    assert len(programs) - programs.count(ray_start) >= 8


def test_tracking_servers_are_started_alike():
    """The one of the compose file is started by a test."""
    options = [
        dict(re.findall(r"--([a-z-]+)[= ](\S+)", " ".join(command)))
        for _, command in shell_commands()
        if command[:2] == ["mlflow", "server"]
    ]
    ours, other = options
    other["allowed-hosts"] = other["allowed-hosts"].replace(",mlflow.explorer:5000", "")
    assert ours == other


@pytest.mark.parametrize(("program", "arguments"), COMMANDS)
def test_command_lines_are_those_of_their_programs(program, arguments):
    context = None
    while isinstance(program, click.Group):
        name, program, arguments = program.resolve_command(context, arguments)
        context = click.Context(program, info_name=name)
    program.make_context(program.name, [*arguments])
