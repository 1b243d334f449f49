"""Training steps of a segmentation network on a GPU, against the least time that they could take.

    python tests/benchmarks/gpu_step.py [--output FILE] [--tables NAME ...] [--short]

It needs torch, numpy and this repository, but no Ray. The floor of a step is the larger of its
arithmetic over the rate of a large matrix product and its traffic over the bandwidth of a large
copy, both measured first. The arithmetic is three forward passes' (gradients of inputs and of
weights); the traffic reads and writes what convolutions take and give, forward and backward, and
passes over the weights: everything between them could be fused away.
"""

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from step import BACKWARD_PASSES, BYTES, FORWARD_PASSES, OPTIMISER_PASSES
from torch import Tensor, nn
from training_step import MAX_PHI, TrainingStep, Workload, factor

from trainables.base import Precision
from trainables.networks.blocks import PlainBlock

SIZE, WIDTH, HIDDEN = 128, 32, (10, 16)
BATCH_SIZES = (4, 16, 64)
FORMATS: tuple[tuple[Precision, bool], ...] = (
    ("bf16", True),
    ("bf16", False),
    ("float32", True),
    ("float32", False),
)
TABLES = ("eager", "replayed", "side_by_side", "compiled", "compiled_blocks")
PROCESSES = (1, 4, 16)
SIDE_BY_SIDE_S = 4.0
PASSES = FORWARD_PASSES + BACKWARD_PASSES + OPTIMISER_PASSES


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output", type=Path, default=Path("gpu_step.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=TABLES, metavar="NAME")
    parser.add_argument("--short", action="store_true", help="few steps: to try the command")
    options = parser.parse_args(arguments)
    tables: dict[str, Any] = {}
    document = {"device": _name(options.device), "torch": torch.__version__, "tables": tables}
    bench = Bench(options.device, is_short=options.short)
    for name in ("ceilings", *options.tables):  # the others need it
        rows = getattr(bench, name)()
        tables[name] = []
        print(name, flush=True)
        for row in rows:
            tables[name].append(row)
            print("  " + "  ".join(f"{k} {_text(v)}" for k, v in row.items()), flush=True)
            options.output.write_text(json.dumps(document, indent=1) + "\n")


class Bench:
    """The measurements of one card."""

    def __init__(self, device: str, *, is_short: bool) -> None:
        self.device, self.num_steps = device, 3 if is_short else 60
        self.side = 256 if is_short else 8192
        self.sizes = (16, 4) if is_short else (SIZE, WIDTH)
        self.rates: dict[str, float] = {}
        self.counted: dict[float, tuple[float, int]] = {}  # of an image, by factor
        self.bytes_per_s = 0.0

    def ceilings(self) -> Iterator[dict[str, Any]]:
        """Rates of large matrix products and of a large copy."""
        for name, dtype, tf32 in (
            ("bf16", torch.bfloat16, False),
            ("tf32", torch.float32, True),
            ("float32", torch.float32, False),
        ):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(self.side, self.side, device=self.device).to(dtype) for _ in "ab")
            seconds = self._seconds(functools.partial(torch.matmul, a, b), 10)
            self.rates[name] = 2 * self.side**3 / seconds
            yield {"of": f"product {name}", "TFLOP_per_s": self.rates[name] / 1e12}
        torch.backends.cuda.matmul.allow_tf32 = False
        source = torch.empty(self.side**2 * 8, device=self.device)
        target = torch.empty_like(source)
        seconds = self._seconds(lambda: target.copy_(source), 10)
        self.bytes_per_s = 2 * source.numel() * BYTES / seconds
        yield {"of": "copy", "GB_per_s": self.bytes_per_s / 1e9}

    def eager(self) -> Iterator[dict[str, Any]]:
        """As the training loop makes them: every precision, layout and batch size."""
        for precision, channels_last in FORMATS:
            for batch_size in BATCH_SIZES:
                for method in ("fixed", "sshn"):
                    step = self._step(method, batch_size, precision, channels_last)
                    first = self._timed(step, method)
                    row = self._row(step, method, "eager", self._timed(step, method))
                    yield row | {"first_ms": 1e3 * first}

    def compiled(self) -> Iterator[dict[str, Any]]:
        """By torch.compile: the whole network at one size."""
        for batch_size in BATCH_SIZES[:2]:
            step = self._step("fixed", batch_size, *FORMATS[0])
            step.module = torch.compile(step.module, dynamic=False)  # type: ignore[assignment]
            yield self._compiled_row(step, "fixed", "compiled, whole network")

    def compiled_blocks(self) -> Iterator[dict[str, Any]]:
        """By torch.compile: the network's blocks, for any size."""
        for method in ("fixed", "sshn"):  # counted before: blocks without storage do not compile
            step = self._step(method, BATCH_SIZES[0], *FORMATS[0])
            self._row(step, method, "", 1.0)
        torch._dynamo.config.recompile_limit = 64
        plain = PlainBlock.forward
        PlainBlock.forward = torch.compile(plain, dynamic=True)  # type: ignore[method-assign]
        try:
            for batch_size in BATCH_SIZES[:2]:
                for method in ("fixed", "sshn"):
                    step = self._step(method, batch_size, *FORMATS[0])
                    yield self._compiled_row(step, method, "compiled, blocks")
        finally:
            PlainBlock.forward = plain  # type: ignore[method-assign]

    def replayed(self) -> Iterator[dict[str, Any]]:
        """Recorded as a CUDA graph at the largest factor: what is left without the launches."""
        if not self.device.startswith("cuda"):
            return
        for batch_size in BATCH_SIZES:
            for method in ("fixed", "sshn"):
                step = self._step(method, batch_size, *FORMATS[0])
                replay = _recorded(step)
                row = self._row(step, method, "replayed", self._seconds(replay, self.num_steps))
                yield row | self._floor(step, method, [MAX_PHI], row["ms"])

    def side_by_side(self) -> Iterator[dict[str, Any]]:
        """Steps per second of several processes that share the card, batches of four."""
        context = multiprocessing.get_context("spawn")
        for num_processes in PROCESSES[:2] if self.num_steps < 10 else PROCESSES:
            barrier = context.Barrier(num_processes)
            with context.Pool(num_processes, initializer=_join, initargs=(barrier,)) as pool:
                work = [(self.device, self.sizes)] * num_processes
                rates = pool.map(_steps_per_s, work, chunksize=1)
            yield {"processes": num_processes, "steps_per_s": sum(rates)}

    def _step(
        self, method: str, batch_size: int, precision: Precision, channels_last: bool
    ) -> TrainingStep:
        workload = Workload(*self.sizes, batch_size, precision, channels_last)
        return TrainingStep(method, workload, hidden_sizes=HIDDEN, device=self.device)

    def _timed(self, step: TrainingStep, method: str) -> float:
        """Mean seconds of a step; the second time its convolutions are planned already."""
        factors = count()
        return self._seconds(lambda: step.run(_factor(method, next(factors))), self.num_steps)

    def _compiled_row(self, step: TrainingStep, method: str, how: str) -> dict[str, Any]:
        start = time.perf_counter()
        for index in range(self.num_steps):
            step.run(_factor(method, index))
        self._wait()
        first_s = time.perf_counter() - start
        row = self._row(step, method, how, self._timed(step, method))
        return row | {"compiling_s": first_s - self.num_steps * row["ms"] / 1e3}

    def _row(self, step: TrainingStep, method: str, how: str, seconds: float) -> dict[str, Any]:
        load = step.workload
        factors = [_factor(method, index) for index in range(self.num_steps)]
        return {
            "how": how,
            "method": method,
            "precision": load.precision,
            "channels_last": load.channels_last,
            "batch_size": load.batch_size,
            "ms": 1e3 * seconds,
            "images_per_s": load.batch_size / seconds,
            **self._floor(step, method, factors, 1e3 * seconds),
        }

    def _floor(
        self, step: TrainingStep, method: str, factors: Sequence[float], ms: float
    ) -> dict[str, float]:
        """Mean over the factors of the least time, and its share of the measured one."""
        load = step.workload
        # convolutions in float32 use tf32 unless it is forbidden
        rate = self.rates["bf16" if load.precision == "bf16" else "tf32"]
        element = 2 if load.precision == "bf16" else BYTES
        weights = sum(parameter.numel() for parameter in step.module.parameters())
        flops = moved = least = 0.0
        for phi in factors:
            if phi not in self.counted:
                each = step.trainable.costs({"phi": phi})["flops"]
                self.counted[phi] = each, _elements(step, phi)
            each, elements = self.counted[phi]
            own = 3 * load.batch_size * each
            traffic = element * load.batch_size * elements + BYTES * PASSES * weights
            flops, moved = flops + own / len(factors), moved + traffic / len(factors)
            least += max(own / rate, traffic / self.bytes_per_s) / len(factors)
        return {
            "TFLOP_per_s": flops / ms / 1e9,
            "share_of_arithmetic": flops / rate / ms * 1e3,
            "share_of_bandwidth": moved / self.bytes_per_s / ms * 1e3,
            "floor_ms": 1e3 * least,
            "share_of_roofline": 1e3 * least / ms,
        }

    def _seconds(self, work: Callable[[], Any], repeats: int) -> float:
        for _ in range(min(5, repeats)):
            work()
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        self._wait()
        return (time.perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def _factor(method: str, index: int) -> float:
    return MAX_PHI if method == "fixed" else factor(index)


def _elements(step: TrainingStep, phi: float) -> int:
    """Numbers of one image that its convolutions must read and write in a training step."""
    structure = step.trainable.structure({"phi": phi})
    total = 0

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal total
        # forward reads inputs, writes outputs; backward reads both (the inputs for the weights'
        # gradient) and writes the inputs' gradient
        total += 3 * inputs[0].numel() + 2 * output.numel()

    hooks = [
        layer.register_forward_hook(note)
        for layer in structure.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    image = torch.empty(1, *step.images.shape[1:], device="meta")
    structure(image, step.trainable.factors({"phi": phi}))
    for hook in hooks:
        hook.remove()
    return total


def _recorded(step: TrainingStep) -> Callable[[], None]:
    """The step at the largest factor as one CUDA graph."""
    for group in step.optimizer.param_groups:
        group["capturable"] = True
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    z = step.trainable.encoded({"phi": MAX_PHI}, step.device)
    # a copy from the host cannot be recorded
    step.trainable.encoded = lambda *_: z
    with torch.cuda.stream(stream):
        for _ in range(3):
            step.run(MAX_PHI)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run(MAX_PHI)
    replay: Callable[[], None] = graph.replay
    return replay


_BARRIER: list[Any] = []


def _join(barrier: Any) -> None:
    _BARRIER.append(barrier)


def _steps_per_s(work: tuple[str, tuple[int, int]]) -> float:
    device, sizes = work
    torch.set_num_threads(1)
    workload = Workload(*sizes, BATCH_SIZES[0], *FORMATS[0])
    step = TrainingStep("sshn", workload, hidden_sizes=HIDDEN, device=device)
    for index in range(10):
        step.run(factor(index))
    step.run(MAX_PHI)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    _BARRIER[0].wait(timeout=120)
    start = time.perf_counter()
    num_steps = 0
    while time.perf_counter() - start < SIDE_BY_SIDE_S:
        for _ in range(10):
            step.run(factor(num_steps))
            num_steps += 1
        if device.startswith("cuda"):
            torch.cuda.synchronize()
    return num_steps / (time.perf_counter() - start)


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
