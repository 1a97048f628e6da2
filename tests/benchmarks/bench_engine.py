"""Our engine beside its peers on the same rows and cores, and beside the floors of this machine, in one run.

    make bench ONLY=engine                                           # quick: ours, LightGBM, EconML at 10,000 rows
    python tests/benchmarks/bench_engine.py --full                   # every trial, size and peer: hours
    python tests/benchmarks/bench_engine.py --trials rct conv --sizes 10000 100000 --seeds 3 --peers ours ydf h2o
    python tests/benchmarks/bench_engine.py --only floors --spark 10000000

Every fit has a fresh process, pinned to `--threads` cores and warmed up by a tiny fit, so that imports, compiling and
starting a JVM are in no figure. Fit seconds run from arrays to model, binning and copying into the peer's own frame
included; predict seconds from 50,000 raw rows to effects, with standard errors where the peer has them. Peak memory is
the highest resident size during the fit less that before it (MiB), of the process and those it started.

Seconds are those of the fastest seed, in brackets of the slowest, as a shared machine only adds; `others` is the share
of its cores that other processes took during the fits. Where it is large, trust the seconds of CPU, all cores together,
before those of the clock. ± is the standard deviation over seeds; every seed draws its own training and held-out rows.
RMSE, coverage and width of 95 % intervals are over all levels, `gain` is the share of the oracle's gain over chance
when the top 20 % are treated.

Peers that are not installed are left out with a line that says so; `make setup` leaves all out, `make bench` installs
those of the extra `bench`. grf needs R. Linux only (reads /proc).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from engine_peers import PEERS, Z95, Effects, Options, Unsupported, missing
from processes import Usage, family
from rich.console import Console
from rich.table import Table

from uplift_spark.events.simulate import BENCHMARKS

HELD_OUT = 50_000
HELD_OUT_SEED = 1_000_000  # added to a trial's seed for its held-out rows
WARM_UP = (2_000, 8)  # rows and trees
SIZES = (10_000, 100_000, 1_000_000)
FULL = {trial: SIZES for trial in ("rct", "conv", "multi", "mconv", "nie_wager_b")}
QUICK = {"rct": (10_000, 100_000), "conv": (100_000,), "multi": (10_000,), "mconv": (100_000,)}
QUICK_PEERS = {"ours": None, "lightgbm": None, "econml": 10_000}  # largest size, None for any
TARGETED = ("conv", "mconv")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# How long OpenMP's threads spin before they sleep. As set by default LightGBM took 40 s instead of 0.1 once other work
# took a core; asleep at once (OMP_WAIT_POLICY=PASSIVE) 1 s on an idle machine. This is the default's speed when idle.
PATIENT = {"GOMP_SPINCOUNT": "1000"}
TIMES = ("fit s", "x ours", "cpu s", "x ours", "peak MiB", "model MB", "predict s")
HEADS = ("peer", *TIMES, "RMSE", "gain", "coverage", "width", "others")
Figures = dict[str, Any]

console = Console(width=160, highlight=False)
progress = Console(stderr=True, highlight=False)


# ---------------------------------------------------------------- one fit, in its own process


def measure(job: Figures) -> Figures:
    """Fit and judge one peer on one draw: seconds, bytes, and errors on the outcome's scale."""
    options = Options(job["trees"], job["threads"], job["seed"])
    draw = BENCHMARKS[job["trial"]]
    train, held_out = draw(job["rows"], job["seed"]), draw(HELD_OUT, job["seed"] + HELD_OUT_SEED)
    try:
        tiny = PEERS[job["peer"]](Options(WARM_UP[1], options.threads, options.seed))
        tiny.fit(draw(WARM_UP[0], 0))
        tiny.predict(held_out.X[:100])
    except Unsupported as reason:
        return {"note": str(reason)}
    del tiny
    peer, usage = PEERS[job["peer"]](options), Usage()
    peer.fit(train)
    fit = usage.stop()
    usage = Usage()
    effects = peer.predict(held_out.X)
    timed = {"fit_s": fit.seconds, "cpu_s": fit.cpu, "predict_s": usage.stop().seconds}
    taken = {"peak": fit.peak, "others": fit.others, "bytes": peer.size()}
    return {**timed, **taken, **peer.clock, **figures_of(effects, held_out.tau, job["trial"] in TARGETED)}


def figures_of(effects: Effects, tau: np.ndarray, targeted: bool) -> Figures:
    """Errors of effects [n, K-1] against the truth, all levels pooled; coverage and mean width of 95 % intervals."""
    effect, se = effects
    figures: Figures = {"rmse": float(np.sqrt(np.mean((effect - tau) ** 2)))}
    if targeted:
        figures["gain"] = float(np.mean([gain(effect[:, k], tau[:, k]) for k in range(tau.shape[1])]))
    if se is not None:
        figures["coverage"] = float(np.mean(np.abs(effect - tau) <= Z95 * se))
        figures["width"] = float(np.mean(2 * Z95 * se))
    return figures


def gain(score: np.ndarray, tau: np.ndarray) -> float:
    """Share of the oracle's gain over chance when the top 20 % by score are treated, for one level."""
    first = len(tau) // 5
    mine, best = (tau[np.argsort(-by, kind="stable")[:first]].mean() for by in (score, tau))
    return float((mine - tau.mean()) / (best - tau.mean()))


def work(job: Figures) -> None:
    """Run a job in this process on its cores and leave the figures in its file."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    if job["kind"] == "peer":
        result: Any = measure(job)
    else:
        from engine_floors import in_memory, on_spark

        result = in_memory(job["threads"], job["trees"]) if job["kind"] == "floors" else on_spark(**job["spark"])
    Path(job["result"]).write_text(json.dumps(result))


# ---------------------------------------------------------------- the processes


def in_process(job: Figures, timeout: float | None) -> Any:
    """What a fresh process finds for a job; {"note": why} when it fails or takes more than `timeout` seconds."""
    environment = {**os.environ, **PATIENT, **dict.fromkeys(THREAD_VARIABLES, str(job["threads"]))}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(prefix="bench-engine-") as folder:
        job = {**job, "result": str(Path(folder, "result"))}
        with Path(folder, "output").open("w+") as output:
            command = [sys.executable, __file__, "--job", json.dumps(job)]
            child = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            try:
                child.wait(timeout)
            except subprocess.TimeoutExpired:
                return {"note": f"more than {timeout:,.0f} s", "late": True}
            finally:
                end(child)
            if child.returncode != 0:
                output.seek(0)
                lines = output.read().strip().splitlines() or [f"ended with {child.returncode}"]
                return {"note": f"failed: {lines[-1][:90]}"}
        return json.loads(Path(job["result"]).read_text())


def end(child: subprocess.Popen) -> None:
    """End a process and all below it, if they still run; a JVM has a session of its own and would stay."""
    for pid in family(child.pid) if child.poll() is None else []:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


# ---------------------------------------------------------------- the tables


def compared(trial: str, rows: int, peers: list[str], late: set[tuple[str, str]], options: argparse.Namespace) -> Table:
    """One trial at one size: every peer on every seed. Who fails once or was late at fewer rows is not tried again."""
    results: dict[str, list[Figures]] = {peer: [] for peer in peers}
    for seed in range(1, options.seeds + 1):
        for peer in peers:
            if (trial, peer) in late or any("note" in one for one in results[peer]):
                continue
            job = {"kind": "peer", "peer": peer, "trial": trial, "rows": rows, "seed": seed}
            one = in_process({**job, "trees": options.trees, "threads": options.threads}, options.timeout)
            results[peer].append(one)
            line = one.get("note") or f"{one['fit_s']:.2f} s, RMSE {one['rmse']:.4f}"
            progress.print(f"{trial} {rows:,} seed {seed} {peer}: {line}")
            if "late" in one:
                late.add((trial, peer))
    return figures_table(
        f"{trial}, {rows:,} rows", results, [constant_rmse(trial, s + 1) for s in range(options.seeds)]
    )


def constant_rmse(trial: str, seed: int) -> float:
    """RMSE of each level's true average effect: the standard deviation of the truth within levels, pooled."""
    tau = BENCHMARKS[trial](HELD_OUT, seed + HELD_OUT_SEED).tau
    return float(np.sqrt(tau.var(axis=0).mean()))


def figures_table(title: str, results: dict[str, list[Figures]], constant: list[float]) -> Table:
    """The table of one trial and size, and below it why a peer is not in it."""
    notes = {peer: why_absent(ones) for peer, ones in results.items()}
    caption = "\n".join(f" {peer}: {note}" for peer, note in notes.items() if note) or None
    table = Table(box=None, title=title, title_justify="left", caption=caption, caption_justify="left")
    for head in HEADS:
        table.add_column(head, no_wrap=True, justify="left" if head == "peer" else "right")
    ours = results.get("ours", [])
    for peer, ones in results.items():
        if notes[peer]:
            continue
        cpu = f"{over(ones, 'cpu_s').min():,.2f}"
        mib, mb = f"{over(ones, 'peak').mean() / 2**20:,.0f}", f"{over(ones, 'bytes').mean() / 1e6:,.2f}"
        digits = {"rmse": 4, "gain": 2, "coverage": 3, "width": 3}
        quality = (spread(over(ones, key), decimals) for key, decimals in digits.items())
        fit = (fastest(over(ones, "fit_s")), ratio(ones, ours, "fit_s"), cpu, ratio(ones, ours, "cpu_s"))
        others = f"{over(ones, 'others').mean():.0%}"
        table.add_row(peer, *fit, mib, mb, fastest(over(ones, "predict_s")), *quality, others)
    table.add_row("constant", *[""] * len(TIMES), spread(np.array(constant), 4))
    return table


def why_absent(ones: list[Figures]) -> str:
    """Why a peer has no row, "" when it has one."""
    return next((one["note"] for one in ones if "note" in one), "" if ones else "took too long with fewer rows")


def ratio(ones: list[Figures], ours: list[Figures], key: str) -> str:
    """Fastest seed to our fastest, blank without ours."""
    return f"{over(ones, key).min() / over(ours, key).min():.2f}" if over(ours, key).size else ""


def fastest(values: np.ndarray) -> str:
    """Seconds of the fastest seed, those of the slowest behind it."""
    return f"{values.min():,.2f}" + (f" ({values.max():,.2f})" if values.size > 1 else "")


def over(ones: list[Figures], key: str) -> np.ndarray:
    """A figure over seeds; empty where the peer has none."""
    return np.array([one[key] for one in ones if key in one])


def spread(values: np.ndarray, digits: int) -> str:
    """Mean ± standard deviation over seeds, blank for none."""
    if values.size == 0:
        return ""
    mean = f"{values.mean():,.{digits}f}"
    return mean if values.size == 1 else f"{mean} ± {values.std(ddof=1):,.{digits}f}"


def floors(arguments: argparse.Namespace) -> Iterator[Table]:
    """The machine's floors and our share of them, in memory and, if asked for, on Spark."""
    job = {"kind": "floors", "threads": arguments.threads, "trees": arguments.trees}
    jobs = [("Floors in memory", job)]
    if arguments.spark:
        options = {"users": arguments.spark, "threads": arguments.threads, "trees": arguments.trees}
        jobs.append(
            (f"Floors on Spark, {arguments.spark:,} users x 4 levels", {**job, "kind": "spark", "spark": options})
        )
    for title, one in jobs:
        result = in_process(one, None)
        heads, *rows = [["", result["note"]]] if isinstance(result, dict) else result
        table = Table(*heads, title=title, title_justify="left", box=None)
        for row in rows:
            table.add_row(*row)
        yield table


# ---------------------------------------------------------------- the command


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", nargs="+", choices=list(BENCHMARKS))
    parser.add_argument("--sizes", type=int, nargs="+", help="training rows")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trees", type=int, default=200, help="trees, or boosting rounds per model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a peer's process may take")
    parser.add_argument("--full", action="store_true", help="every trial, size and peer")
    parser.add_argument("--only", choices=["peers", "floors"], help="one of the two parts")
    parser.add_argument("--spark", type=int, nargs="?", const=1_000_000, help="users of the Spark floors")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_known_args()[0]


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """(trial, rows, peers) of every table asked for."""
    plan = FULL if arguments.full else QUICK
    wanted = arguments.peers or list(PEERS if arguments.full else QUICK_PEERS)
    reasons = {peer: missing(peer) for peer in wanted}
    for peer, reason in reasons.items():
        if reason:
            console.print(f"left out: {peer} ({reason})")
    for trial in arguments.trials or plan:
        for rows in arguments.sizes or plan.get(trial, SIZES[:1]):
            largest = {} if arguments.full or arguments.peers else QUICK_PEERS
            yield trial, rows, [p for p in wanted if not reasons[p] and rows <= (largest.get(p) or rows)]


def main() -> None:
    """Print a table per trial and size as soon as it is done, then the floors."""
    arguments = parsed()
    if arguments.job:
        return work(json.loads(arguments.job))
    title = f"{arguments.threads} threads, {arguments.trees} trees, {arguments.seeds} seeds"
    console.print(f"{title}; load at start {os.getloadavg()[0]:.1f}")
    late: set[tuple[str, str]] = set()
    if arguments.only != "floors":
        for trial, rows, peers in cells(arguments):
            console.print(compared(trial, rows, peers, late, arguments), "")
    if arguments.only != "peers":
        for table in floors(arguments):
            console.print(table, "")


if __name__ == "__main__":
    main()
