"""Play a game day: a fault in a simulated campaign, and what the jobs make of it, with times.

Makes a lakehouse of its own below a folder, trains, injects the fault, and runs monitor, retrain and canary on the days
on which something happens, by the clock of the simulated campaign. Prints the timeline and a table of minutes to
detection, action and recovery, writes timeline.html, and ends with 1 where a job says or records anything else. `loop`
plays drift, a bad model and an outage of the labels in one campaign; `all` plays each game day by itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from uplift_spark.config import Lakehouse
from uplift_spark.console import Progress, err, main_command, open_lake, out, words_table
from uplift_spark.errors import ConfigError, UpliftError, hint
from uplift_spark.gamedays.play import ARRIVALS, GameDay, GameDayFailed
from uplift_spark.gamedays.scenes import GAME_DAYS, LOOP, ScenePlan
from uplift_spark.gamedays.timeline import RESULT_HEADS, GameDayResult, timeline_lines, timeline_page
from uplift_spark.runtime import write_files

WHAT_TO_PLAY = (*GAME_DAYS, "loop", "all")


def chosen_scenes(name: str) -> dict[str, ScenePlan]:
    """{name: scene} of a game day, of the loop, or of all but the loop. Raises ConfigError for another name."""
    if name not in WHAT_TO_PLAY:
        raise ConfigError(f"`uplift gameday` has no {name!r}: {hint(name, WHAT_TO_PLAY)}")
    if name == "loop":
        return {name: LOOP}
    return dict(GAME_DAYS) if name == "all" else {name: GAME_DAYS[name]}


def command(
    name: Annotated[str, typer.Argument(help=f"{', '.join(WHAT_TO_PLAY[:-1])} or all.", show_default=False)],
    to: Annotated[
        Path, typer.Option(help="Folder of lakehouse and timeline; a folder NAME in it is made anew.")
    ] = Path("build/gamedays"),
    per_day: Annotated[int, typer.Option(min=100, help="Customers of a day.")] = 1000,
) -> None:
    """Play, print, and end with 1 where a game day does not show what it has to."""
    scenes, failures = chosen_scenes(name), []
    folders = {one: to.resolve() / one for one in scenes}
    check_ours(folders.values())
    reporter = Progress(err())
    reporter.report("starting Spark")
    with open_lake(Lakehouse(path=str(to.resolve() / "lakehouse"))) as lake:
        for one, scene in scenes.items():
            shutil.rmtree(folders[one], ignore_errors=True)
            game = GameDay.of(scene.world(per_day), folders[one], lake, reporter.report)
            results: Sequence[GameDayResult] = ()
            try:
                results = scene.play(game)
            except UpliftError as problem:
                failures.append(f"game day {one} does not show what it has to: {problem}")
            show(one, game, results)
    if failures:
        raise GameDayFailed("; ".join(failures))


def check_ours(folders: Iterable[Path]) -> None:
    """Raise ConfigError where a folder that is to be made anew holds anything else than a game day."""
    for folder in folders:
        if folder.exists() and any(folder.iterdir()) and not (folder / ARRIVALS).is_dir():
            raise ConfigError(f"{folder} holds something else than a game day: name another folder with --to")


def show(name: str, game: GameDay, results: Sequence[GameDayResult]) -> None:
    """Print timeline and table, and write the page."""
    out().print(words_table(("clock", "what", ""), timeline_lines(game.entries)))
    if results:
        out().print(words_table(RESULT_HEADS[:-1], [one.row[:-1] for one in results]))
        for one in results:  # not a column: a terminal would cut the last one off
            out().print(f"{one.name}: {one.row[-1]} was lost", soft_wrap=True)
    write_files(game.folder, {"timeline.html": timeline_page(name, game.entries, results)})
    out().print(f"Picture: {game.folder / 'timeline.html'}", soft_wrap=True)


if __name__ == "__main__":
    main_command(command, __doc__)
