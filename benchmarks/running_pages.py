"""What docs/run.md, cluster.md and serve.md say of their measurements; `readme.py` puts it in its places."""

from __future__ import annotations

from tables import Row, commands, missing, read, table, times

RUNS = {"local": "kill -9 of the process", "ray": "an actor killed"}


def killed() -> str:
    """Rows of a job that was killed beside those of one that nobody disturbed."""
    return missing("jobs.csv", "benchmarks/jobs.py kill") or _killed(read("jobs.csv"))


def killed_on_ray() -> str:
    if told := missing("jobs.csv", "benchmarks/jobs.py kill --engine ray"):
        return told
    rows = [row for row in read("jobs.csv") if row["engine"] == "ray"]
    return _killed(rows) if rows else "Not measured yet: `python benchmarks/jobs.py kill --engine ray`."


def _killed(rows: list[Row]) -> str:
    cells = [
        [row["model"], f"{row['killed']}, {RUNS[row['engine']]}", row["items"], row["rows"], row["lost"], row["twice"],
         "all" if row["ids_equal"] == row["classes_equal"] == "True" else "**not all**",
         "bit by bit" if row["rows_equal"] == "True" else "to rounding"]
        for row in rows
    ]  # fmt: skip
    head = ["model", "killed", "items", "rows", "lost", "twice", "ids and classes equal", "probabilities equal"]
    where = {} if len({row["engine"] for row in rows}) > 1 else {"engine": rows[0]["engine"]}
    return f"{table(head, cells)}\n\n{commands('jobs.csv', **where)}"


def throughput() -> str:
    """A job beside its model alone."""
    if told := missing("jobs_speed.csv", "benchmarks/jobs.py speed"):
        return told
    rows = read("jobs_speed.csv")
    cells = [
        [row["model"], f"`{row['recipe']}`", row["batch"], row["workers"], f"{float(row['alone_per_second']):.1f}",
         f"{float(row['run_per_second']):.1f}",
         f"{100 * float(row['share']):.0f} % [{100 * float(row['low']):.0f}-{100 * float(row['high']):.0f}]",
         f"{100 * float(row['waited']):.0f} %", row["said"] or "-"]
        for row in rows
    ]  # fmt: skip
    head = ["model", "recipe", "batch", "workers", "alone, a second", "job, a second", "share", "waited", "it says"]
    return f"""Items a second, of the model alone on batches that are there and of the whole job, by turns, in
brackets the range of the rounds; {rows[0]["machine"]}:

{table(head, cells)}

{commands("jobs_speed.csv")}"""


def broken() -> str:
    """How many kinds of broken input gave what they had to."""
    if told := missing("jobs_broken.csv", "benchmarks/jobs.py broken"):
        return told
    rows = read("jobs_broken.csv")
    good = sum(row["as_expected"] == "True" for row in rows)
    return f"""Each is tried by `python benchmarks/jobs.py broken`: {good} of {len(rows)} give what the table says
([results](../results/jobs_broken.csv))."""


def under_load() -> str:
    """Requests a second and times, dense and sieved, with more and more clients."""
    if told := missing("serve.csv", "benchmarks/serve.py"):
        return told
    parts = []
    rows = read("serve.csv")
    for model, recipe in dict.fromkeys((row["model"], row["recipe"]) for row in rows):
        own = [row for row in rows if (row["model"], row["recipe"]) == (model, recipe)]
        kind = {"file": "real weights", "library": "the library's weights", "random": "random weights"}
        cells = []
        for clients in dict.fromkeys(row["clients"] for row in own):
            dense, sieved = (
                next(row for row in own if (row["clients"], row["variant"]) == (clients, variant))
                for variant in ("dense", "sieved")
            )
            both = [
                f"{float(dense[name]):.{digits}f}, {float(sieved[name]):.{digits}f}"
                for name, digits in (("per_second", 1), ("p50", 0), ("p99", 0), ("batch", 1))
            ]
            cells.append([clients, *both, times(sieved["ratio"])])
        failed = sum(int(row["failed"]) + int(row["refused"]) for row in own)
        parts.append(
            f"""{model}, {kind[own[0]["weights"]]}, `{recipe}`, {times(own[0]["macs_ratio"])} fewer MACs,
batches of at most {own[0]["largest_batch"]}, {own[0]["seconds"]} s each; {failed} of
{sum(int(row["answered"]) for row in own) + failed} requests failed or were refused:

{table(["clients", "requests a second", "p50 ms", "p99 ms", "mean batch", "gain"], cells)}"""
        )
    return f"""Each cell has dense, then sieved. {rows[0]["machine"]}; clients and service share it.

{(chr(10) * 2).join(parts)}

{commands("serve.csv")}"""


RUNNING = {
    "docs/run.md": {"killed": killed, "broken": broken, "throughput": throughput},
    "docs/cluster.md": {"killed": killed_on_ray},
    "docs/serve.md": {"load": under_load},
}
