"""Who is to blame for a hang: a pure function from what is known of all ranks to a judgement."""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from scaletrain.launch.hang.evidence import MOVING, Evidence
from scaletrain.launch.hang.heartbeat import Phase
from scaletrain.launch.verdicts import Verdict

_STANDS = ("T", "t", "D", "")
_MOST_NAMED = 4


@dataclass(frozen=True)
class Gone:
    """A rank that has ended while the others wait for it.

    Attributes:
        rank: Global index.
        host: Its machine.
        verdict: How it ended.
        reason: Why.
        hosts: Machines that its verdict names.
    """

    rank: int
    host: str
    verdict: Verdict
    reason: str
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judgement:
    """What a report concludes.

    Attributes:
        verdict: How all ranks end.
        conclusion: One sentence.
        blamed: Ranks that did not come to where the others wait; none where all of them wait.
        hosts: The machine to do without, where all of the blamed ranks are on one and the run is on others as well.
        why: The rule that named them, for people.
    """

    verdict: Verdict
    conclusion: str
    blamed: tuple[int, ...]
    hosts: tuple[str, ...]
    why: str


def judge(
    seen: Mapping[int, Evidence], gone: Mapping[int, Gone], world_size: int, host_of: Mapping[int, str]
) -> Judgement:
    """Finds the ranks that the others wait for.

    The first of these that is so decides:

    1. A rank has ended.
    2. A rank is stopped, blocked in the kernel or dead.
    3. A rank has met an error and does not end.
    4. A rank went on while it was looked at, so that no two can be compared: nobody is named.
    5. A rank is behind the others, and not because it waits in a collective.
    6. A rank is as far as the others, who wait in a collective, and is in none.
    7. A rank has moved on after the report had begun: it was slow.
    8. Nobody has spoken for a rank.
    9. A rank is behind the others, and waits in another collective than they.

    Where none is so, all wait in one collective, and it is between them.

    Args:
        seen: What each rank's keeper found; of one at least.
        gone: Ranks with a verdict already.
        world_size: Ranks of the run.
        host_of: Machines of the ranks, as far as they are known.

    Returns:
        The judgement.
    """
    if gone:
        return _of_gone(sorted(gone.values(), key=lambda one: one.rank))
    farthest = max(seen.values(), key=lambda one: one.place)
    nearest = min(one.place for one in seen.values())
    behind = [one for one in seen.values() if one.place == nearest]
    active = [one for one in behind if not one.collective]
    are_apart = nearest != farthest.place
    waiting = next((one.collective for one in behind if one.collective), "")
    elsewhere = f"the others are in {_where(farthest)}" if are_apart else f"the others wait in {waiting}"
    standing = (
        ([one for one in seen.values() if one.state in _STANDS], "the process does not run"),
        ([one for one in seen.values() if one.phase == Phase.ERROR], "it has met an error, and does not end"),
    )
    late = (
        (active if are_apart or waiting else [], elsewhere),
        ([one for one in seen.values() if one.moved_on], "it moved on after the others' limit had passed: it was slow"),
    )
    machines = {*host_of.values(), *(one.host for one in seen.values())}
    moving = [one for one in seen.values() if one.state == MOVING]
    for blamed, why in standing if moving else (*standing, *late):
        if 0 < len(blamed) < world_size:
            return _blame(blamed, why, machines)
    if moving:
        return _of_moving(seen.values())
    silent = [rank for rank in range(world_size) if rank not in seen]
    if silent:
        return _of_silent(silent, seen, host_of)
    if are_apart:
        return _blame(behind, elsewhere, machines)
    return _of_none(list(seen.values()), is_known=not active)


def _of_gone(gone: Sequence[Gone]) -> Judgement:
    first = gone[0]
    told = _several([f"rank {one.rank} on {one.host}" for one in gone])
    conclusion = f"{told} had ended ({first.verdict}: {first.reason[:200]}), and this waited"
    return Judgement(first.verdict, conclusion, tuple(one.rank for one in gone), first.hosts, "it left a verdict")


def _of_silent(silent: Sequence[int], seen: Mapping[int, Evidence], host_of: Mapping[int, str]) -> Judgement:
    known = {host_of[rank] for rank in silent if rank in host_of}
    told = _several([f"rank {rank} on {host_of[rank]}" if rank in host_of else f"rank {rank}" for rank in silent])
    alone = tuple(known) if len(known) == 1 and not known & {one.host for one in seen.values()} else ()
    conclusion = f"hang at step {_step(seen.values())}: nobody has spoken for {told}"
    if {host_of.get(rank) for rank in silent} <= {one.host for one in seen.values()}:
        why = (
            "others on its machine have spoken, so its keeper was killed or stopped: "
            f"look for the process that {silent[0]}.pid names, in the attempt's folder of exit/"
        )
    else:
        why = (
            "neither the rank nor its keeper has left anything: its machine may be down, or out of reach of the storage"
        )
    return Judgement(Verdict.HANG, conclusion, tuple(silent), alone, why)


def _of_moving(seen: Iterable[Evidence]) -> Judgement:
    # The first step that anybody saw is the one at which the limit passed.
    conclusion = f"slow at step {min(one.step for one in seen)}: the ranks moved on after a limit had passed"
    why = "they went on while they were looked at, so nobody can be told; monitor.hang.min_limit_s may be too short"
    return Judgement(Verdict.HANG, conclusion, (), (), why)


def _blame(blamed: Sequence[Evidence], why: str, machines: AbstractSet[str], is_alone: bool = False) -> Judgement:
    blamed = sorted(blamed, key=lambda one: one.rank)
    words = [f"{one.stands} in {_where(one)} for {one.seconds:.0f} s{_workers(one)}" for one in blamed]
    if len(blamed) > 1:
        named = _several([f"{one.name}, {does}" for one, does in zip(blamed, words, strict=True)])
        told = f"{len(blamed)} ranks did not arrive: {named}"
    else:
        told = f"{blamed[0].name} {'does not move on' if is_alone else 'did not arrive'}: {words[0]}"
    conclusion = f"hang at step {_step(blamed)}: {told}"
    hosts = {one.host for one in blamed}
    return Judgement(
        Verdict.HANG,
        conclusion,
        tuple(one.rank for one in blamed),
        # Of a run on one machine it cannot be told whether that or the program is to blame.
        tuple(hosts) if len(hosts) == 1 and machines > hosts else (),
        why,
    )


def _of_none(seen: Sequence[Evidence], is_known: bool) -> Judgement:
    step = max(one.step for one in seen)
    if len(seen) == 1:
        return _blame(seen, "there is no other rank", {seen[0].host}, is_alone=True)
    where = _where(seen[0])
    if is_known:
        conclusion = f"hang at step {step}: all ranks wait for each other in {where}, in {seen[0].collective}"
        why = "the network between them is the first suspect"
    else:
        conclusion = f"hang at step {step}: all ranks stand in {where}, and none can be told from the others"
        why = "their stacks tell more"
    return Judgement(Verdict.HANG, conclusion, (), (), why)


def _workers(one: Evidence) -> str:
    return f"; {one.workers}" if one.workers and one.phase == Phase.DATA else ""


def _where(one: Evidence) -> str:
    micro = f", micro step {one.micro_step}" if one.phase in (Phase.FORWARD, Phase.BACKWARD) else ""
    return f"{Phase(one.phase).label} of step {one.step}{micro}"


def _step(seen: Iterable[Evidence]) -> int:
    return max((one.step for one in seen), default=0)


def _several(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return "; ".join(texts[:_MOST_NAMED]) + more
