"""The HTTP service: one running process, and what it answers."""

import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from explorer import Bound, open_exploration
from explorer.exporting import load_network
from explorer.measurements import measurements_table
from explorer.splits import load_data
from explorer.store import measurements_store, set_state
from tests.conftest import free_port, measured
from trainables.deformations import warp

pytestmark = [pytest.mark.ray]  # the service starts a Ray of its own

TOKEN = "a-token-of-the-tests"
LIMIT_BYTES = 200_000
PAIRS = (
    "name=pairs",
    "tracking=false",
    "dataset.size=[24, 24]",
    "dataset.options={num_images: 30, num_domains: 1, num_labels: 3}",
    "registration.encoder_widths=[8, 12]",
    "registration.decoder_widths=[12, 12]",
    "registration.final_widths=[8]",
    "registration.num_pairs=12",
    "train.epochs=4",
    "train.seeds=[0, 1]",
    "model.hidden_sizes=[16, 16]",
    "explore.num_points=5",
    "baselines=[]",
)


@contextmanager
def started(explorer, *arguments):
    """A running service, its port and the lines that it writes to stderr."""
    port, lines = free_port(), []
    process = explorer.start("serve", "--port", port, *arguments)
    # a full pipe would stop it
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 120
        while not any(line.startswith("serving ") for line in lines):
            assert process.poll() is None, lines
            assert time.monotonic() < deadline, lines
            time.sleep(0.1)
        yield process, port, lines
    finally:
        explorer.kill(process)


@pytest.fixture(scope="module")
def runs_dir(explorer, finished, tmp_path_factory):
    """A segmentation with a grid beside it, and a registration of two seeds."""
    folder = tmp_path_factory.mktemp("served") / "runs"
    shutil.copytree(finished.folder, folder / "tiny-1")
    changes = [part for change in PAIRS for part in ("--set", change)]
    ended = explorer("run", "hypermorph-demo", *changes, "--runs-dir", folder, "--json")
    assert ended.code == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def token_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def service(explorer, runs_dir, token_file):
    options = ("--token-file", token_file, "--max-upload", LIMIT_BYTES, "--time-limit", 60)
    with started(explorer, "--runs-dir", runs_dir, *options) as running:
        yield running


@pytest.fixture(scope="module")
def client(service):
    url, headers = f"http://127.0.0.1:{service[1]}", {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60) as own:
        yield own


@pytest.fixture
def command(explorer, runs_dir):
    """What the command line prints as JSON."""

    def printed(*arguments):
        ended = explorer(*arguments, "--runs-dir", runs_dir, "--json")
        return json.loads(ended.stdout)

    return printed


def picture(image, format_name="PNG"):
    data = io.BytesIO()
    Image.fromarray(np.round((image + 1) * 127.5).astype(np.uint8)).save(data, format_name)
    return data.getvalue()


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def images(runs_dir):
    """The first two images of the data set of each exploration, as 8-bit pictures and floats."""
    found = {}
    for name in ("tiny-1", "pairs-1"):
        exploration = open_exploration(name, runs_dir)
        stored = [picture(image[0]) for image in load_data(exploration.spec).images[:2]]
        found[name] = [(one, pixels(one).astype(np.float32) / 127.5 - 1) for one in stored]
    return found


def mistake(response):
    """Location and message of the one value that was refused."""
    assert response.status_code == 422, response.text
    (one,) = response.json()["detail"]
    return one["loc"], one["msg"]


# who may ask, and for what


def test_health_and_readiness_need_no_token(client):
    for path, status in (("/health", "ok"), ("/ready", "ready")):
        response = httpx.get(f"{client.base_url}{path}")
        assert (response.status_code, response.json()) == (200, {"status": status})


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
@pytest.mark.parametrize("path", ["/explorations", "/explorations/tiny-1", "/openapi.json", "/no"])
def test_nothing_else_is_told_without_the_token(client, path, header):
    headers = {} if header is None else {"Authorization": header}
    response = httpx.get(f"{client.base_url}{path}", headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in response.text


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "%2e%2e",
        "../runs/tiny-1",
        "..%2Fruns%2Ftiny-1",
        "%2Fetc",
        "/etc/passwd",
        "tiny-1%00",
        "tiny-1%2F..",
        "link",
        "nobody-1",
        "tiny-1%20",
        "%ff",
    ],
)
def test_ids_cannot_leave_the_runs_directory(service, runs_dir, tmp_path, path):
    outside = tmp_path / "outside"
    if path == "link":
        shutil.copytree(runs_dir / "tiny-1", outside)
        (runs_dir / "link").symlink_to(outside)
    connection = http.client.HTTPConnection("127.0.0.1", service[1], timeout=30)
    try:
        connection.putrequest("GET", f"/explorations/{path}", skip_host=False)
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.endheaders()
        response = connection.getresponse()
        content = json.loads(response.read())
    finally:
        connection.close()
        (runs_dir / "link").unlink(missing_ok=True)
    assert response.status == 404
    assert str(runs_dir) not in json.dumps(content)


def test_a_host_that_others_reach_takes_a_token(explorer, tmp_path):
    ended = explorer("serve", "--host", "0.0.0.0", "--runs-dir", tmp_path)
    assert ended.code == 2
    assert "--host 0.0.0.0: other machines reach it" in ended.error
    assert "--token-file" in ended.error


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("secret", 0o644, "others may read or change it; chmod 600"),
        (" \n", 0o600, "expected one token"),
        ("two words", 0o600, "expected one token"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_token_file_holds_one_secret_token(explorer, tmp_path, content, mode, message):
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    ended = explorer("serve", "--token-file", path, "--runs-dir", tmp_path)
    assert ended.code == 2
    assert message in ended.error


def test_a_port_that_is_taken_is_said_before_anything_starts(explorer, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = explorer("serve", "--port", port, "--runs-dir", tmp_path)
    assert ended.code == 2
    assert f"--port {port}: cannot listen there" in ended.error


# explorations, fronts, queries, costs


def test_explorations_and_fronts_are_those_of_the_command_line(client, command):
    assert client.get("/explorations").json() == command("list")
    for name in ("tiny-1", "pairs-1"):
        assert client.get(f"/explorations/{name}").json() == command("show", name)
        assert client.get(f"/explorations/{name}/frontier").json() == command("frontier", name)
    asked = client.get("/explorations/tiny-1/frontier", params={"method": "fixed"}).json()
    assert asked == command("frontier", "tiny-1", "--method", "fixed")


def test_a_front_on_test_is_of_test_values(client):
    front = client.get("/explorations/tiny-1/frontier", params={"split": "test"}).json()
    validated = client.get("/explorations/tiny-1/frontier").json()
    settings = {
        json.dumps(point["conditioning"]): point["test_metrics"] for point in validated["frontier"]
    }
    for point in front["frontier"]:
        assert point["metrics"] == settings.get(json.dumps(point["conditioning"]), point["metrics"])
    assert all(not point["test_metrics"] for point in front["frontier"])


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({}, []),
        ({"max": {"macs": "0.17M"}}, ["--max", "macs=0.17M"]),
        ({"max": {"macs": 170000}, "minimize": "dice"}, ["--max", "macs=170k", "--minimize=dice"]),
        ({"min": {"dice": 0}, "minimize": "macs"}, ["--min", "dice=0", "--minimize", "macs"]),
        ({"max": {"macs": 1}}, ["--max", "macs=1"]),
        ({"knee": True, "method": "fixed"}, ["--knee", "--method", "fixed"]),
        ({"seeds": [0]}, ["--seed", "0"]),
    ],
)
def test_queries_are_those_of_the_command_line(client, command, body, options):
    response = client.post("/explorations/tiny-1/query", json=body)
    assert response.status_code == 200
    assert response.json() == command("query", "tiny-1", *options)


def test_a_thousand_queries_at_once_are_each_answered_as_alone(client):
    rng = np.random.default_rng(0)
    budgets = rng.uniform(1.5e5, 2.3e5, 999)
    queries = [{"max": {"macs": budget}, "maximize": "macs"} for budget in budgets]
    queries.append({"method": "fixed", "min": {"dice": 2}})
    answers = client.post("/explorations/tiny-1/queries", json={"queries": queries})
    answers = answers.json()["answers"]
    assert len(answers) == 1000
    assert {answer["feasible"] for answer in answers} == {True, False}
    assert len({json.dumps(answer["point"]) for answer in answers if answer["feasible"]}) > 1
    for index in (0, 500, 999):
        alone = client.post("/explorations/tiny-1/query", json=queries[index]).json()
        assert answers[index] == alone
    more = client.post("/explorations/tiny-1/queries", json={"queries": [{}] * 1001})
    assert mistake(more)[0] == ["body", "queries"]


@pytest.mark.parametrize(
    ("path", "body", "location", "message"),
    [
        (
            "query",
            {"max": {"dyce": 1}},
            ["body", "max", "dyce"],
            "unknown metric, cost or conditioning 'dyce'",
        ),
        ("query", {"min": {"dice": "much"}}, ["body", "min", "dice"], "expected a number such as"),
        ("query", {"maximize": "dyce"}, ["body", "maximize"], "unknown metric, cost"),
        ("query", {"maximize": "dice", "minimize": "macs"}, ["body", "minimize"], "got both"),
        ("query", {"knee": True, "maximize": "dice"}, ["body", "knee"], "leave the others out"),
        ("query", {"method": "unet"}, ["body", "method"], "no measurements of method 'unet'"),
        ("query", {"seeds": [7]}, ["body", "seeds"], "no measurements of seed 7"),
        ("query", {"limit": 1}, ["body", "limit"], "Extra inputs"),
        ("queries", {"queries": [{}, {"max": {"x": 1}}]}, ["body", "queries", 1, "max", "x"], "un"),
        ("cost", {"conditioning": {"phi": 2}}, ["body", "conditioning"], "phi must be in"),
        ("cost", {"conditioning": {}}, ["body", "conditioning"], "phi"),
        ("cost", {"conditioning": {"phi": 0.1}, "method": "x"}, ["body", "method"], "unknown meth"),
        ("cost", {}, ["body", "conditioning"], "required"),
        ("optimize", {"maximize": "macs"}, ["body", "maximize"], "unknown metric 'macs'"),
        ("optimize", {"solver": "sgd"}, ["body", "solver"], "Input should be"),
        ("optimize", {}, ["body"], "no differentiable function"),
    ],
)
def test_bad_values_are_refused_by_their_field(client, path, body, location, message):
    where, said = mistake(client.post(f"/explorations/tiny-1/{path}", json=body))
    assert where == location
    assert message in said


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "true", "[1]"])
def test_what_is_no_finite_number_is_refused(client, number):
    response = client.post(
        "/explorations/tiny-1/query",
        content=f'{{"max": {{"macs": {number}}}}}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert all(one["loc"][:3] == ["body", "max", "macs"] for one in response.json()["detail"])


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b'{"max": {"\\ud800": 1}}', b"[" * 100_000, b"1" * 5000]
)
def test_bodies_that_are_no_question_are_refused(client, content):
    response = client.post(
        "/explorations/tiny-1/query",
        content=content,
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"][0] == "body"


def test_costs_are_those_of_the_command_line(client, command, runs_dir):
    found = client.post("/explorations/tiny-1/cost", json={"conditioning": {"phi": 0.3}}).json()
    assert found == command_cost(command, runs_dir)


def command_cost(command, runs_dir):
    spec = runs_dir / "tiny-1" / "spec.yaml"
    ended = subprocess.run(
        [sys.executable, "-m", "explorer", "cost", spec, "--at", "phi=0.3", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ended.stdout)


# predictions


def test_a_mask_is_that_of_the_exported_network(client, runs_dir, images, tmp_path):
    stored, image = images["tiny-1"][0]
    exploration = open_exploration("tiny-1", runs_dir)
    answer = exploration.query([Bound("macs", "max", 170e3)])
    exploration.export(answer.point, tmp_path / "network")
    import torch

    with torch.inference_mode():
        logits = load_network(tmp_path / "network")(torch.from_numpy(image)[None, None])
    expected = logits.argmax(1)[0].numpy()
    assert expected.any()
    sent = {"max": '{"macs": "170k"}'}
    found = client.post("/explorations/tiny-1/predict", files={"image": stored}, data=sent).json()
    assert found["conditioning"] == dict(answer.point.conditioning)
    assert found["costs"] == answer.point.to_json()["costs"]
    assert (found["trial_id"], found["size"]) == ("sshn-s0", [16, 16])
    mask = pixels(base64.b64decode(found["mask"]["base64"]))
    np.testing.assert_array_equal(mask, expected)
    counts = {name: own["pixels"] for name, own in found["labels"].items()}
    assert list(counts.values()) == [int((expected == k).sum()) for k in range(1, 5)]
    overlay = pixels(base64.b64decode(found["overlay"]["base64"]))
    grey = np.repeat(pixels(stored)[..., None], 3, axis=-1)
    assert ((overlay != grey).any(-1) <= (expected > 0)).all()
    alone = client.post(
        "/explorations/tiny-1/predict",
        files={"image": stored},
        data={**sent, "return": "mask"},
    )
    assert alone.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels(alone.content), expected)


def test_a_mask_changes_with_the_conditioning_and_not_with_the_kind_of_file(client, images):
    stored, image = images["tiny-1"][0]

    def mask(data, phi):
        response = client.post(
            "/explorations/tiny-1/predict",
            files={"image": data},
            data={"conditioning": json.dumps({"phi": phi}), "return": "mask"},
        )
        assert response.status_code == 200, response.text
        return response.content

    assert mask(stored, 0.05) == mask(picture(image, "TIFF"), 0.05)
    assert mask(stored, 0.05) != mask(stored, 0.5)


def test_a_pair_is_registered_as_in_process(client, runs_dir, images, tmp_path):
    (moving, a), (fixed, b) = images["pairs-1"]
    import torch

    from explorer.training import trained_model

    exploration = open_exploration("pairs-1", runs_dir)
    sent = {"conditioning": '{"lambda": 0.3}'}
    files = {"moving": moving, "fixed": fixed}
    found = client.post("/explorations/pairs-1/predict", files=files, data=sent).json()
    assert found["trial_id"] in {"hypermorph-s0", "hypermorph-s1"}
    folder = exploration.folder / "trials" / found["trial_id"]
    trainable, module = trained_model(folder, exploration.spec)
    pair = torch.from_numpy(np.stack([a, b]))[None]
    with torch.inference_mode():
        displacement = trainable.materialize(module, {"lambda": 0.3})(pair)
        moved = warp(pair[:, :1], displacement)[0, 0].numpy()
    lengths = displacement[0].norm(dim=0)
    assert found["displacement"]["max"] == pytest.approx(float(lengths.max()), rel=1e-4)
    expected = np.round((moved + 1) * 127.5)
    shown = pixels(base64.b64decode(found["moved"]["base64"])).astype(float)
    assert np.abs(shown - expected).max() <= 1
    # of two seeds that which export takes
    point = exploration.at({"lambda": 0.3})
    assert len(point.trial_ids) == 2
    assert exploration.export(point, tmp_path / "network").trial_id == found["trial_id"]
    measured_there = json.dumps({"lambda": 0.25})
    there = client.post(
        "/explorations/pairs-1/predict", files=files, data={"conditioning": measured_there}
    ).json()
    exported = exploration.export(exploration.at({"lambda": 0.25}), tmp_path / "measured")
    assert there["trial_id"] == exported.trial_id
    alone = client.post(
        "/explorations/pairs-1/predict", files=files, data={**sent, "return": "moved"}
    )
    assert alone.content == base64.b64decode(found["moved"]["base64"])


@pytest.mark.parametrize(
    ("files", "data", "location", "message"),
    [
        ({}, {}, ["body", "image"], "expected image"),
        ({"moving": b"x"}, {}, ["body", "image"], "expected image"),
        ({"image": b"no image"}, {}, ["body", "image"], "expected a complete"),
        ({"image": None}, {"conditioning": '{"phi": 7}'}, ["body", "conditioning"], "in [0"),
        ({"image": None}, {"conditioning": '{"phi": NaN}'}, ["body", "conditioning"], "finite"),
        ({"image": None}, {"conditioning": "phi"}, ["body", "conditioning"], "JSON"),
        ({"image": None}, {"max": '{"macs": 1}'}, ["body", "max"], "no setting has macs <= 1"),
        (
            {"image": None},
            {"max": '{"macs": "1G"}', "conditioning": '{"phi": 0.1}'},
            ["body", "conditioning"],
            "got both",
        ),
        ({"image": None}, {"return": "moved"}, ["body", "return"], "expected json, mask or over"),
        ({"image": None}, {"method": "x"}, ["body", "method"], "unknown method"),
        (
            {"image": None},
            {"method": "fixed", "conditioning": '{"phi": 0.3}'},
            ["body", "conditioning"],
            "fixed is trained for each setting",
        ),
    ],
)
def test_predictions_say_what_they_cannot_take(client, images, files, data, location, message):
    stored = images["tiny-1"][0][0]
    files = {name: stored if content is None else content for name, content in files.items()}
    response = client.post("/explorations/tiny-1/predict", files=files or None, data=data)
    detail = response.json()["detail"]
    assert response.status_code == 422
    assert detail[0]["loc"][: len(location)] == location
    assert message in detail[0]["msg"]


@pytest.mark.parametrize(
    ("data", "files", "name"),
    [
        ({"at": '{"phi": 0.4}'}, {}, "at"),
        ({"maximum": '{"macs": "1M"}'}, {}, "maximum"),
        ({}, {"picture": b"x"}, "picture"),
    ],
)
def test_fields_that_a_prediction_does_not_have_are_refused(client, images, data, files, name):
    files = {"image": images["tiny-1"][0][0], **files}
    response = client.post("/explorations/tiny-1/predict", files=files, data=data)
    assert response.status_code == 422
    (mistake,) = response.json()["detail"]
    assert mistake["loc"] == ["body", name]
    assert mistake["msg"].startswith("unknown name; expected one of image, moving, fixed, cond")


def test_parameters_that_an_endpoint_does_not_have_are_refused(client):
    response = client.get("/explorations/tiny-1/frontier", params={"metod": "fixed"})
    assert response.status_code == 422
    (mistake,) = response.json()["detail"]
    assert mistake["loc"] == ["query", "metod"]
    assert "expected one of method" in mistake["msg"]


def test_a_network_of_the_grid_answers_where_it_was_trained(client, images):
    stored = images["tiny-1"][0][0]
    found = client.post(
        "/explorations/tiny-1/predict",
        files={"image": stored},
        data={"method": "fixed", "conditioning": '{"phi": 0.4}'},
    ).json()
    assert (found["trial_id"], found["conditioning"]) == ("fixed-phi0.4-s0", {"phi": 0.4})


def test_gigantic_pictures_are_refused_before_they_are_decoded(client):
    data = io.BytesIO()
    Image.new("L", (8000, 8000)).save(data, "PNG")
    assert len(data.getvalue()) < LIMIT_BYTES
    response = client.post("/explorations/tiny-1/predict", files={"image": data.getvalue()})
    location, message = mistake(response)
    assert location == ["body", "image"]
    assert "more than 16000000 pixels" in message


def test_large_requests_are_refused_by_their_length_and_while_they_come(service, client):
    large = client.post("/explorations/tiny-1/predict", files={"image": bytes(LIMIT_BYTES)})
    assert large.status_code == 413

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(2**12):
            yield bytes(2**16)

    with httpx.Client(headers=client.headers, timeout=60) as other:
        try:
            streamed = other.post(
                f"{client.base_url}/explorations/tiny-1/predict",
                content=endless(),
                headers={"Content-Type": "multipart/form-data; boundary=x"},
            )
        except httpx.WriteError:
            pytest.fail("the connection was cut without an answer")
    assert streamed.status_code == 413
    assert streamed.json()["detail"] == f"the request is larger than {LIMIT_BYTES} bytes"


# optima


def test_an_optimum_is_that_of_the_command_line(client, command):
    body = {"pairs": 4, "by": "label"}
    found = client.post("/explorations/pairs-1/optimize", json=body).json()
    expected = command("optimize", "pairs-1", "--pairs", "4", "--by", "label")
    for document in (found, expected):
        for result in document["results"]:
            del result["elapsed_s"]
    assert found == expected


def test_the_time_limit_ends_an_optimisation_and_the_next_is_answered(explorer, runs_dir, images):
    with started(explorer, "--runs-dir", runs_dir, "--time-limit", 0.1) as (process, port, _):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as own:
            slow = {"solver": "grid", "num_points": 1000, "pairs": 12}
            response = own.post("/explorations/pairs-1/optimize", json=slow)
            assert response.status_code == 504
            assert response.json() == {"detail": "it took more than 0.1 s"}
            # without a token, since only this machine asks
            assert own.get("/explorations").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 130


# what changes while the service runs


def test_new_changed_and_removed_explorations_are_seen(client, runs_dir):
    shutil.copytree(runs_dir / "tiny-1", runs_dir / "copy-1")
    try:
        ids = [row["exploration_id"] for row in client.get("/explorations").json()]
        assert sorted(ids) == ["copy-1", "pairs-1", "tiny-1"]
        before = client.post("/explorations/copy-1/query", json={}).json()["point"]
        better = measured(0.45, 0.999, trial_id="sshn-s0", metrics={"dice": 0.999}, num_samples=99)
        measurements_store(runs_dir / "copy-1").append(measurements_table([better]))
        set_state(runs_dir / "copy-1", status="running")
        after = client.post("/explorations/copy-1/query", json={}).json()
        assert after["point"]["conditioning"] == {"phi": 0.45} != before["conditioning"]
        assert after["status"] == "running"
    finally:
        shutil.rmtree(runs_dir / "copy-1")
    assert client.post("/explorations/copy-1/query", json={}).status_code == 404
    assert client.get("/explorations/copy-1").status_code == 404


def test_damage_is_one_line_and_a_lost_runs_directory_is_not_ready(client, runs_dir):
    manifest = runs_dir / "tiny-1" / "measurements" / "manifest.json"
    content = manifest.read_bytes()
    manifest.write_text("{")
    try:
        response = client.post("/explorations/tiny-1/query", json={})
        assert response.status_code == 422
        assert "Traceback" not in response.text
    finally:
        manifest.write_bytes(content)
    moved = runs_dir.with_name("elsewhere")
    runs_dir.rename(moved)
    try:
        response = client.get("/ready")
        assert response.status_code == 503
        assert "is no folder" in response.json()["detail"]
        assert client.get("/explorations").json() == []
        assert client.get("/health").status_code == 200
    finally:
        moved.rename(runs_dir)
    assert client.get("/ready").status_code == 200


def test_an_unexpected_error_is_logged_and_not_told(service, client, runs_dir):
    state = runs_dir / "tiny-1" / "state.json"
    content = state.read_bytes()
    state.write_text("[]")
    try:
        response = client.get("/explorations/tiny-1")
    finally:
        state.write_bytes(content)
    assert response.status_code == 500
    assert response.json() == {"detail": "the service failed; its log says why"}
    deadline = time.monotonic() + 20
    while not any("TypeError" in line for line in service[2]):
        assert time.monotonic() < deadline, service[2]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("exploration_id", ["tiny-1", "pairs-1", None])
def test_no_request_of_the_documented_form_fails_the_service(service, exploration_id, tmp_path):
    config = tmp_path / "schemathesis.toml"
    if exploration_id is not None:
        config.write_text(f'[parameters]\nexploration_id = "{exploration_id}"\n')
    else:
        config.write_text("")
    options = {
        "--max-examples": "100",
        "--phases": "coverage,fuzzing",
        # which names exist is not in the document
        "--exclude-checks": "positive_data_acceptance",
        "--request-timeout": "90",
        "--header": f"Authorization: Bearer {TOKEN}",
    }
    ended = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            f"--config-file={config}",
            "run",
            f"http://127.0.0.1:{service[1]}/openapi.json",
            *(f"{name}={value}" for name, value in options.items()),
            "--generation-deterministic",
            "--continue-on-failure",
            "--no-shrink",
            "--no-color",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-8000:]
    count = re.search(r"(\d+) generated, (\d+) passed", ended.stdout)
    assert count[1] == count[2]
    assert int(count[1]) >= 700  # three times: more than two thousand
