"""The measures of sweeps: what is said to follow from what was measured."""

import pytest

from benchmarks.sweeps import Sizes, parser

# a task of 0.5 s; the scheduler takes 1 ms for a message, the process that stores 1 ms to store and 0.5 ms to receive
SMALL = Sizes(
    num_fits=60, work=0.5, write=1e-3, schedule=1e-3, receive=5e-4, sent=1000, truth=5000, back=9000, wall=2e-3
)


@pytest.mark.parametrize(
    ("sizes", "title", "said"),
    [
        (SMALL, "workers at which the scheduler is the limit", "10,000"),  # messages of 10 s
        (SMALL, "the same if each task were sent alone", "500"),
        (SMALL, "workers at which the process that stores is the limit", "488"),  # 1 / (1 / 500 + 0.5 / 10,000)
        (SMALL, "scheduler busy", "10%"),
        (SMALL, "process that stores busy", "205%"),
        (SMALL, "MB a second", "20.0"),
    ],
)
def test_what_follows_for_many_workers(sizes: Sizes, title: str, said: str) -> None:
    assert dict(sizes.rows(10.0))[title] == said


def test_a_task_that_takes_longer_than_a_message_should_is_one() -> None:
    long = Sizes(**{**vars(SMALL), "work": 40.0})
    found = dict(long.rows(10.0))
    assert found["workers at which the scheduler is the limit"] == "40,000"
    assert found["the same if each task were sent alone"] == "40,000"


def test_the_options_are_understood() -> None:
    found = parser().parse_args(["two-workers", "--guides", "gamma", "--num-seeds", "4"])
    assert (found.what, found.guides, found.num_seeds, found.num_problems) == ("two-workers", ["gamma"], 4, 100)
