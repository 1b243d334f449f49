"""The HTTP service: FastAPI on Ray Serve.

What is answered is the command line's JSON, made by the same code (`explorer.documents`); here are
the endpoints, what a mistake is called, and how the service is started.
Settings travel to the replicas, not the app: each builds its own.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import ray
import ray.exceptions
from fastapi import Depends, FastAPI, File, Form, Query, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Json
from ray import serve as ray_serve
from ray.serve.schema import LoggingConfig
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from explorer import bodies, documents
from explorer.answering import (
    Choice,
    Explorations,
    Question,
    UnknownExplorationError,
    ask,
    ask_all,
    images_of,
)
from explorer.exploration import Exploration, open_exploration
from explorer.guarding import OPEN_PATHS, Guard, PlainJSON, token_digest
from explorer.models import image_size
from explorer.places import place_of, runs_place
from explorer.predicting import Prediction
from explorer.progress import ProgressReport
from explorer.quantities import parse_quantity
from explorer.queries import Bound, BoundKind
from explorer.training import ray_session, root_cause
from search_spaces.errors import InputError, RunError
from search_spaces.problem import Objective

APP_NAME = "explorer"
CHECK_S = 2.0  # between looks at the service while it runs

Returned: TypeAlias = Literal["json", "mask", "moved", "overlay"]
Location: TypeAlias = tuple[str | int, ...]

logger = logging.getLogger("ray.serve")


class Settings(BaseModel):
    """What a service needs to know; also the arguments of `application` in a Ray Serve config.

    Attributes:
        runs_dir: where explorations live.
        host: address of the proxy; other machines reach all but loopback, which takes a token.
        port: of the proxy.
        token_file: holds the token that every request has to bear.
        max_upload_bytes: of one request.
        time_limit_s: of one prediction or optimisation.
        replicas: processes that answer.
    """

    runs_dir: str
    host: str = "0.0.0.0"
    port: int = 8080
    token_file: Path | None = None
    max_upload_bytes: int = 64 * 2**20
    time_limit_s: float = 120.0
    replicas: int = 1


class BadValueError(Exception):
    """A value of a request that cannot be used.

    Args:
        location: where it stands, such as body, max, macs.
        message: one line.
    """

    def __init__(self, location: Location, message: str) -> None:
        super().__init__(message)
        self.location = location


class Service:
    """The endpoints, over the explorations of a runs directory.

    Args:
        explorations: that are asked.
        time_limit_s: of a prediction or an optimisation.
    """

    def __init__(self, explorations: Explorations, *, time_limit_s: float) -> None:
        self.explorations, self.time_limit_s = explorations, time_limit_s
        # One at a time: a prediction that outlives its limit delays others, and does not pile up.
        self._predicting = ThreadPoolExecutor(1, thread_name_prefix="predicting")
        self._optimizing = asyncio.Semaphore(1)

    def health(self) -> Any:
        """Whether the process is alive."""
        return PlainJSON({"status": "ok"})

    def ready(self) -> Any:
        """Whether the runs directory can be read."""
        try:
            self.explorations.require()
        except (InputError, RunError, OSError) as error:
            raise HTTPException(503, f"runs directory: {error}") from error
        return PlainJSON({"status": "ready"})

    def listed(self) -> Any:
        """The explorations, oldest first, as `explorer list --json`."""
        return PlainJSON(self.explorations.rows())

    def shown(self, exploration_id: str) -> Any:
        """State, trials and spec, as `explorer show --json`."""
        return PlainJSON(documents.shown(self.explorations.get(exploration_id)))

    def frontier(
        self,
        exploration_id: str,
        method: Annotated[
            str | None, Query(max_length=200, description="Default: its own.")
        ] = None,
        split: Annotated[
            Literal["val", "test"], Query(description="Choose on val: test is for looking at.")
        ] = "val",
    ) -> Any:
        """The nondominated settings, as `explorer frontier --json`."""
        exploration = self.explorations.get(exploration_id)
        status = exploration.state["status"]
        with naming("query", "method"):
            points = exploration.frontier(method=method, split=split)
        return PlainJSON(documents.front(exploration, points, method=method, status=status))

    def query(self, exploration_id: str, body: bodies.QueryBody) -> Any:
        """The best setting within bounds, as `explorer query --json`, feasible or not."""
        exploration = self.explorations.get(exploration_id)
        status = exploration.state["status"]
        question = question_of(exploration, body, ("body",))
        with naming("body"):
            answer = ask(exploration, question)
        return PlainJSON(documents.answered(answer, status=status))

    def queries(self, exploration_id: str, body: bodies.QueriesBody) -> Any:
        """Many questions of one table."""
        exploration = self.explorations.get(exploration_id)
        status = exploration.state["status"]
        questions = [
            question_of(exploration, one, ("body", "queries", index))
            for index, one in enumerate(body.queries)
        ]
        with naming("body", "queries"):
            answers = ask_all(exploration, questions)
        return PlainJSON(
            {"answers": [documents.answered(answer, status=status) for answer in answers]}
        )

    def cost(self, exploration_id: str, body: bodies.CostBody) -> Any:
        """What a setting costs, as `explorer cost --json`."""
        exploration = self.explorations.get(exploration_id)
        with naming("body", "method"):
            self.explorations.trainable(exploration, body.method)
        with naming("body", "conditioning"):
            found = self.explorations.costs(exploration, body.conditioning, body.method)
        return PlainJSON(found)

    async def predict(
        self,
        exploration_id: str,
        image: Annotated[UploadFile | None, File(description="PNG, JPEG, TIFF or NIfTI.")] = None,
        moving: Annotated[UploadFile | None, File(description="Of a registration.")] = None,
        fixed: Annotated[UploadFile | None, File(description="Of a registration.")] = None,
        conditioning: Annotated[
            Json[bodies.Conditioning] | None, Form(description='JSON: {"phi": 0.25}.')
        ] = None,
        max: Annotated[
            Json[bodies.Bounds] | None, Form(description='JSON: {"macs": "0.6G"}.')
        ] = None,
        min: Annotated[Json[bodies.Bounds] | None, Form(description='JSON: {"dice": 0.9}.')] = None,
        maximize: Annotated[str | None, Form(max_length=200)] = None,
        minimize: Annotated[str | None, Form(max_length=200)] = None,
        method: Annotated[str | None, Form(max_length=200)] = None,
        returned: Annotated[
            Returned, Form(alias="return", description="json, or one of its files alone.")
        ] = "json",
    ) -> Any:
        """What the network makes of an image (segmentation) or a pair (registration).

        At a conditioning, or at a query's answer: the best setting within bounds. Images are
        brought to the network's grid as those of the exploration's data set are.
        """
        exploration = await run_in_threadpool(self.explorations.get, exploration_id)
        sent = {"image": image, "moving": moving, "fixed": fixed}
        with naming("body", "method"):
            wanted = images_of(exploration, method)
        for name, upload in sent.items():
            if (name in wanted) != (upload is not None):
                raise BadValueError(
                    ("body", name), f"expected {' and '.join(wanted)}, no other images"
                )
        contents = {name: await one.read() for name, one in sent.items() if one is not None}
        body = bodies.QueryBody.model_validate(
            {
                "max": max or {},
                "min": min or {},
                "maximize": maximize,
                "minimize": minimize,
                "method": method,
            }
        )

        def work() -> tuple[Choice, Prediction]:
            choice = self._choice(exploration, conditioning, body)
            with naming("body", *wanted[:1]):
                return choice, self.explorations.predict(exploration, choice, contents)

        loop = asyncio.get_running_loop()
        try:
            choice, prediction = await asyncio.wait_for(
                loop.run_in_executor(self._predicting, work), self.time_limit_s
            )
        except TimeoutError as error:
            raise self._too_slow() from error
        return await run_in_threadpool(_predicted, exploration, choice, prediction, returned)

    def _choice(
        self,
        exploration: Exploration,
        conditioning: Mapping[str, Any] | None,
        body: bodies.QueryBody,
    ) -> Choice:
        """The setting that a request names, or the answer to its query."""
        if conditioning is None:
            question = question_of(exploration, body, ("body",))
            answer = ask(exploration, question)
            if answer.point is None:
                raise BadValueError(("body", "max" if body.max else "min"), answer.reason)
            conditioning = answer.point.conditioning
        elif body.max or body.min or body.maximize or body.minimize:
            raise BadValueError(
                ("body", "conditioning"), "expected a conditioning or a query, got both"
            )
        with naming("body", "conditioning"):
            return self.explorations.choose(exploration, conditioning, method=body.method)

    async def optimize(self, exploration_id: str, body: bodies.OptimizeBody) -> Any:
        """The best setting for validation samples, as `explorer optimize --json`.

        Needs the data set where the service runs.
        """
        exploration = await run_in_threadpool(self.explorations.get, exploration_id)
        objective = objective_of(body.maximize, body.minimize, ("body",))
        name = (objective or exploration.objectives[0]).name

        def check() -> None:
            with naming("body", "seeds" if body.seeds is not None else "method"):
                exploration.points(method=body.method, seeds=body.seeds)
            metrics = self.explorations.trainable(exploration, body.method).metrics
            if name not in metrics:
                raise BadValueError(
                    ("body", "minimize" if body.minimize else "maximize"),
                    f"unknown metric {name!r}; known: {', '.join(metrics)}",
                )

        await run_in_threadpool(check)
        arguments = {
            "objective": objective,
            "by": body.by,
            "solver": body.solver,
            "num_pairs": body.pairs,
            "starts": body.starts,
            "num_points": body.num_points,
            "method": body.method,
            "seeds": body.seeds,
        }
        try:
            async with asyncio.timeout(self.time_limit_s), self._optimizing:
                found = await _in_own_process(
                    str(self.explorations.runs), exploration_id, arguments
                )
        except TimeoutError as error:
            raise self._too_slow() from error
        except InputError as error:
            raise BadValueError(("body",), str(error)) from error
        return PlainJSON(found)

    def _too_slow(self) -> HTTPException:
        return HTTPException(504, f"it took more than {self.time_limit_s:g} s")


async def _in_own_process(
    runs_dir: str, exploration_id: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """An optimisation in a process that can be ended, at its time limit, from outside."""
    reference = _optimized.remote(runs_dir, exploration_id, arguments)
    is_done = False
    try:
        found: dict[str, Any] = await reference
        is_done = True
    except ray.exceptions.RayTaskError as error:
        is_done = True
        raise root_cause(error) from error
    finally:
        if not is_done:
            ray.cancel(reference, force=True)
    return found


@ray.remote(num_cpus=0, max_retries=0)
def _optimized(runs_dir: str, exploration_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    exploration = open_exploration(exploration_id, runs_dir)
    return documents.optimized(
        exploration.optimize(**arguments), status=exploration.state["status"]
    )


def _predicted(
    exploration: Exploration, choice: Choice, prediction: Prediction, returned: Returned
) -> Response:
    """A prediction as JSON, or one of its files."""
    files = prediction.files()
    if returned != "json":
        if returned not in files:
            raise BadValueError(
                ("body", "return"), f"expected json, {' or '.join(files)}, got {returned}"
            )
        return Response(files[returned].data, media_type=files[returned].media_type)
    encoded = {
        name: {"media_type": one.media_type, "base64": base64.b64encode(one.data).decode("ascii")}
        for name, one in files.items()
    }
    return PlainJSON(
        {
            "exploration_id": exploration.id,
            "method": choice.method,
            "trial_id": choice.trial_id,
            "conditioning": choice.conditioning,
            "costs": choice.costs,
            "size": list(image_size(exploration.spec)),
            **prediction.statistics(),
            **encoded,
        }
    )


def question_of(exploration: Exploration, body: bodies.QueryBody, location: Location) -> Question:
    """A body as a question whose every name exists.

    Raises:
        BadValueError: a name that there is not, a bound that is no number, or too many objectives.
    """
    objective = objective_of(body.maximize, body.minimize, location)
    if body.knee and objective is not None:
        raise BadValueError(
            (*location, "knee"), "of the exploration's own objectives: leave the others out"
        )
    seeds = None if body.seeds is None else tuple(body.seeds)
    with naming(*location, "method" if seeds is None else "seeds"):
        points = exploration.points(method=body.method, seeds=seeds)
    if objective is not None:
        with naming(*location, "minimize" if body.minimize else "maximize"):
            points.values(objective.name)
    bounds = []
    kinds: tuple[tuple[BoundKind, Mapping[str, float | str]], ...] = (
        ("max", body.max),
        ("min", body.min),
    )
    for kind, values in kinds:
        for name, value in values.items():
            with naming(*location, kind, name):
                points.values(name)
                number = parse_quantity(value) if isinstance(value, str) else value
                bounds.append(Bound(name, kind, number))
    return Question(tuple(bounds), objective, body.knee, body.method, seeds)


def objective_of(
    maximize: str | None, minimize: str | None, location: Location
) -> Objective | None:
    """The objective that a body names, if it does."""
    if maximize is not None and minimize is not None:
        raise BadValueError((*location, "minimize"), "expected it or maximize, got both")
    if minimize is not None:
        return Objective(minimize, "minimize")
    return None if maximize is None else Objective(maximize, "maximize")


@contextmanager
def naming(*location: str | int) -> Iterator[None]:
    """Say of a user's mistake where in the request it stands."""
    try:
        yield
    except UnknownExplorationError:
        raise
    except InputError as error:
        raise BadValueError(location, str(error)) from error


def build_app(settings: Settings, digest: bytes | None) -> FastAPI:
    """The app of one replica."""
    explorations = Explorations(place_of(settings.runs_dir))
    service = Service(explorations, time_limit_s=settings.time_limit_s)
    app = FastAPI(
        title="Pareto explorer",
        description="Explorations, their frontiers, and the best setting for a budget.",
        version=version("pareto-explorer"),
        redoc_url=None,
    )
    _add_endpoints(app, service)
    handlers: dict[Any, Callable[[Any], tuple[int, Any]]] = {
        BadValueError: lambda error: (422, [_mistake(error.location, str(error), "value_error")]),
        RequestValidationError: lambda error: (
            422,
            [_mistake(one["loc"], one["msg"], one["type"]) for one in error.errors()],
        ),
        UnknownExplorationError: lambda error: (404, str(error)),
        InputError: lambda error: (422, [_mistake(("path",), str(error), "value_error")]),
        RunError: lambda error: (503, str(error)),
    }
    for kind, explain in handlers.items():
        app.exception_handler(kind)(_handler(explain))
    app.exception_handler(HTTPException)(_http_error)
    if _has_page(settings):
        from explorer.page import mount

        app = mount(app, explorations)
    app.add_middleware(Guard, token_digest=digest, max_upload_bytes=settings.max_upload_bytes)
    return app


def _add_endpoints(app: FastAPI, service: Service) -> None:
    one = "/explorations/{exploration_id}"
    everywhere, sent = (401, 404, 422, 503), (401, 404, 413, 422, 503)
    routes: tuple[tuple[str, str, Callable[..., Any], Any, tuple[int, ...]], ...] = (
        ("GET", "/health", service.health, bodies.StatusDocument, ()),
        ("GET", "/ready", service.ready, bodies.StatusDocument, (503,)),
        ("GET", "/explorations", service.listed, list[bodies.ListedDocument], (401, 503)),
        ("GET", one, service.shown, bodies.ShownDocument, everywhere),
        ("GET", f"{one}/frontier", service.frontier, bodies.FrontierDocument, everywhere),
        ("POST", f"{one}/query", service.query, bodies.AnswerDocument, sent),
        ("POST", f"{one}/queries", service.queries, bodies.AnswersDocument, sent),
        ("POST", f"{one}/cost", service.cost, bodies.CostDocument, sent),
        ("POST", f"{one}/predict", service.predict, bodies.PredictionDocument, (*sent, 504)),
        ("POST", f"{one}/optimize", service.optimize, bodies.OptimaDocument, (*sent, 504)),
    )
    bearer = Depends(HTTPBearer(auto_error=False, description="The token, where there is one."))
    for method, path, endpoint, model, codes in routes:
        responses = bodies.problems(*codes)
        if path.endswith("/predict"):
            files: dict[str, Any] = {"image/png": {}, "application/gzip": {}}
            responses[200] = {"content": files, "description": "JSON, or the file asked for."}
        app.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=model,
            responses=responses,
            dependencies=[] if path in OPEN_PATHS else [bearer, Depends(_refuse_unknown)],
        )


async def _refuse_unknown(request: Request) -> None:
    """Refuse parameters and fields of a form that the endpoint does not have.

    Left alone, a name that is misspelt would be answered as if it had not been given.
    """
    known = request.scope["route"].dependant
    sent = {"query": (list(request.query_params), known.query_params)}
    if request.headers.get("content-type", "").startswith(("multipart/", "application/x-www")):
        sent["body"] = (list(await request.form()), known.body_params)
    for place, (names, fields) in sent.items():
        expected = [field.alias for field in fields]
        for name in names:
            if name not in expected:
                told = ", ".join(expected) or "none"
                raise BadValueError((place, name), f"unknown name; expected one of {told}")


def _mistake(location: Sequence[str | int], message: str, kind: str) -> dict[str, Any]:
    return {"loc": list(location), "msg": message, "type": kind}


def _handler(explain: Callable[[Any], tuple[int, Any]]) -> Any:
    async def handle(request: Request, error: Exception) -> Response:
        code, detail = explain(error)
        return PlainJSON({"detail": detail}, code)

    return handle


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 400:  # a body that cannot be taken apart
        return PlainJSON({"detail": [_mistake(("body",), str(error.detail), "body_error")]}, 422)
    return PlainJSON({"detail": error.detail}, error.status_code, error.headers)


def application(settings: Settings) -> ray_serve.Application:
    """The service as Ray Serve deploys it; `explorer.serving:application` of a Serve config.

    Raises:
        InputError: a host that others reach without a token, or no good file of one.
    """
    settings = Settings.model_validate(settings)  # Ray hands a mapping over
    digest = token_digest(settings.host, settings.token_file)

    def build() -> FastAPI:
        return build_app(settings, digest)

    deploy = ray_serve.deployment(
        name=APP_NAME,
        num_replicas=settings.replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 1},
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=5,
    )
    return deploy(ray_serve.ingress(build)()).bind()


def serve(settings: Settings, progress: ProgressReport) -> None:
    """Serve until interrupted, on the Ray that `ray_session` joins or starts.

    Raises:
        InputError: a runs directory or token that cannot be, a port that is taken.
        RunError: Ray cannot be started, or the service died.
        KeyboardInterrupt: it was asked to stop, and has.
    """
    token_digest(settings.host, settings.token_file)
    runs = runs_place(settings.runs_dir)
    runs_dir = str(runs.absolute()) if isinstance(runs, Path) else str(runs)
    settings = settings.model_copy(update={"runs_dir": runs_dir})
    _require_free(settings.host, settings.port)
    logger.setLevel(logging.WARNING)
    logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
    with ray_session(progress, log_to_driver=True):
        _require_processors(settings.replicas)
        if ray_serve.status().proxies:
            raise RunError(
                "RAY_ADDRESS: Ray Serve runs on that cluster; give it explorer.serving:application "
                "with its own tools, or name another cluster"
            )
        try:
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": settings.host, "port": settings.port},
                logging_config=logs,
            )
            ray_serve.run(
                application(settings), name=APP_NAME, route_prefix="/", logging_config=logs
            )
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            address = f"http://{host}:{settings.port}"
            progress.say(f"serving {runs_dir} on {address} (Ctrl-C stops it); {_page(settings)}")
            if isinstance(runs, Path) and not runs.is_dir():
                progress.say(f"{runs_dir} is no folder yet: there is nothing to answer from")
            while True:
                time.sleep(CHECK_S)
                ray_serve.status()
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise RunError(f"the service died: {str(error).splitlines()[0]}") from error
        finally:
            ray_serve.delete(APP_NAME)  # after the requests that are under way
            if os.environ.get("RAY_ADDRESS"):  # a private Ray ends with this process
                ray_serve.shutdown()  # type: ignore[no-untyped-call]  # ray's


def _has_page(settings: Settings) -> bool:
    return settings.replicas == 1 and find_spec("gradio") is not None  # it lives in one process


def _page(settings: Settings) -> str:
    """Where the page is, or why there is none."""
    if _has_page(settings):
        return "its page is at /ui"
    if settings.replicas > 1:
        return "no page: it needs a single replica"
    return "no page: pip install 'pareto-explorer[ui]' brings what it needs"


def _require_free(host: str, port: int) -> None:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _, address in addresses[:1]:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--host {host} --port {port}: cannot listen there ({error}); choose another"
        ) from error


def _require_processors(replicas: int) -> None:
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's
    available = int(resources.get("CPU", 0))
    if replicas > available:
        raise InputError(
            f"--replicas {replicas}: expected at most one per processor, of which there are "
            f"{available}"
        )
