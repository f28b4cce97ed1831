"""Who does what next: pulled jobs, bounded retries, machines that cannot, and the simulation."""

import errno
from collections import deque

import pytest

from lucid_batch.jobs import Job
from lucid_batch.pool import room
from lucid_batch.scheduler import Event, Scheduler
from lucid_batch.simulate import simulate
from lucid_batch.view import counts, duration, table
from lucid_batch.worker import Result


class Memory:
    """A store without a disk; `others` are the jobs of another driver."""

    def __init__(self, done=(), others=(), full=False):
        self.results, self.failures = dict.fromkeys(done), {}
        self.others, self.full = set(others), full
        self.published, self.given_up = [], {}

    def is_done(self, key):
        return key in self.results

    def why_given_up(self, key):
        return self.given_up.get(key, "")

    def claim(self, key):
        return key not in self.others and key not in self.results

    def publish(self, key, files, report):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        assert key not in self.results
        self.results[key] = report
        self.published.append(key)
        return True

    def give_up(self, key, record):
        self.failures[key] = record


class Scripted:
    """A pool that answers a job by `answer(worker, job, attempt)`: a Result, or "died" or "gone"."""

    def __init__(self, workers, answer):
        self.names = [f"w{number}" for number in range(workers)]
        self.answer, self.now = answer, 0.0
        self.events = deque(Event("ready", name) for name in self.names)
        self.submitted = []

    def clock(self):
        return self.now

    def submit(self, worker, job):
        self.submitted.append((worker, job.key))
        answer = self.answer(worker, job.key, [key for _, key in self.submitted].count(job.key))
        if isinstance(answer, Result):
            self.events.append(Event("ended", worker, answer))
            if answer.outcome == "down":
                self.events.append(Event("gone", worker, reason=answer.reason))
        else:
            self.events.append(Event(answer, worker, reason="killed"))
            if answer == "died":
                self.events.append(Event("ready", worker))

    def wait(self, timeout_s):
        self.now += 1.0
        events, self.events = list(self.events), deque()
        return events


DONE = Result("done", "", {}, {})


def scheduled(count, pool, store=None, **options):
    jobs = [Job(line, f"j{line}", {}, {}, key=f"j{line}") for line in range(count)]
    made = Scheduler(jobs, store or Memory(), pool, **options)
    made.run(pool.names)
    return made


def test_every_job_is_done_once():
    pool = Scripted(3, lambda *_: DONE)
    made = scheduled(10, pool)
    assert sorted(made.store.published) == sorted(f"j{n}" for n in range(10)) and made.made == 10
    assert len(pool.submitted) == 10 and not made.failed


def test_what_is_done_is_skipped():
    pool = Scripted(2, lambda *_: DONE)
    made = scheduled(4, pool, Memory(done=["j0", "j3"]))
    assert made.skipped == 2 and {key for _, key in pool.submitted} == {"j1", "j2"}


def test_a_poison_job_is_given_up_with_all_its_reasons():
    pool = Scripted(
        2, lambda worker, key, attempt: Result("failed", f"no {attempt}") if key == "j1" else DONE
    )
    made = scheduled(4, pool)
    record = made.store.failures["j1"]
    assert [one["reason"] for one in record["attempts"]] == ["no 1", "no 2", "no 3"]
    assert record["reason"] == "no 3" and made.failed == {"j1": "no 3"} and len(made.done) == 3
    assert len({worker for worker, key in pool.submitted if key == "j1"}) == 2  # another worker tried it too


def test_a_refused_job_is_not_tried_again():
    made = scheduled(2, Scripted(2, lambda w, key, n: Result("refused", "x") if key == "j0" else DONE))
    assert len(made.store.failures["j0"]["attempts"]) == 1


@pytest.mark.parametrize("end", ["died", "gone"])
def test_the_job_of_a_dead_worker_goes_on_elsewhere(end):
    pool = Scripted(2, lambda worker, key, attempt: end if (key, attempt) == ("j0", 1) else DONE)
    made = scheduled(3, pool)
    assert len(made.done) == 3 and [key for _, key in pool.submitted].count("j0") == 2
    assert "worker died" in made.store.results["j0"]["attempts"][0]["reason"]


def test_a_machine_without_the_model_leaves_its_jobs_to_others():
    answer = lambda worker, key, attempt: Result("unfit", "no x on w0") if worker == "w0" else DONE
    made = scheduled(4, Scripted(2, answer))
    assert len(made.done) == 4 and not made.failed


def test_a_model_that_no_machine_has_fails_the_job():
    answer = lambda worker, key, attempt: Result("unfit", f"no x on {worker}") if key == "j1" else DONE
    made = scheduled(3, Scripted(2, answer))
    assert made.failed == {"j1": "no x on w1; no x on w0"} or made.failed == {"j1": "no x on w0; no x on w1"}
    assert len(made.done) == 2


def test_jobs_stay_that_only_a_dead_machine_could_do():
    def answer(worker, key, attempt):
        return Result("unfit", "no x") if worker == "w0" else Result("down", "it hangs")

    made = scheduled(3, Scripted(2, answer))
    assert len(made.waiting) == 3 and not made.failed and made.lost_workers == {"w1": "it hangs"}


def test_without_workers_the_jobs_stay():
    made = scheduled(3, Scripted(2, lambda *_: Result("down", "no GPU")))
    assert len(made.waiting) == 3 and not made.failed and not made.store.failures
    assert made.lost_workers == {"w0": "no GPU", "w1": "no GPU"}


def test_a_full_disk_ends_the_run_and_fails_no_job():
    with pytest.raises(OSError, match="No space"):
        scheduled(2, Scripted(1, lambda *_: DONE), Memory(full=True))


def test_a_job_whose_picture_is_gone_fails_and_the_others_run():
    pool = Scripted(1, lambda *_: DONE)
    submit = pool.submit

    def without(worker, job):
        if job.key == "j0":
            raise FileNotFoundError(errno.ENOENT, "No such file", "cat.png")
        submit(worker, job)

    pool.submit = without
    made = scheduled(3, pool)
    assert made.done == {"j1", "j2"} and "cat.png" in made.failed["j0"]
    assert len(made.store.failures["j0"]["attempts"]) == 1


def test_the_reason_of_another_driver_is_shown():
    store, lines = Memory(others=["j0"]), []
    store.given_up["j0"] = "no such picture"
    made = scheduled(2, Scripted(1, lambda *_: DONE), store, changed=lines.append)
    assert made.failed == {"j0": "another driver gave it up: no such picture"}
    assert any("no such picture" in line for line in lines)


def test_jobs_of_another_driver_are_waited_for_and_taken_over_when_it_dies():
    store = Memory(others=["j0", "j1"])
    pool = Scripted(1, lambda *_: DONE)
    wait = pool.wait

    def later(timeout_s):
        if pool.now == 5:
            store.results["j0"] = None  # it finishes one
        if pool.now == 8:
            store.others.clear()  # and dies
        return wait(timeout_s)

    pool.wait = later
    made = scheduled(3, pool, store)
    assert made.done == {"j0", "j1", "j2"} and store.published == ["j2", "j1"]


def test_a_stop_hands_out_nothing_more():
    pool = Scripted(1, lambda *_: DONE)
    made = Scheduler([Job(1, "a", {}, {}, key="a")], Memory(), pool)
    made.run(pool.names, lambda: True)
    assert not pool.submitted and len(made.waiting) == 1


@pytest.mark.parametrize("workers", [8, 64, 512])
def test_the_scheduler_keeps_its_workers_busy(workers):
    """In virtual time, without the scheduler's own; 1 s of overhead for each job."""
    found = simulate(workers, 20 * workers, store=Memory(), real=lambda: 0.0)
    assert 0.99 < found.throughput <= 1 and found.efficiency < found.throughput
    assert 0 < found.tail_s < 6 * 3600


@pytest.mark.parametrize(
    "nodes, workers, found",
    [
        ([(8, 0)], 0, (1, 8, 0)),
        ([(8, 0)], 2, (2, 4, 0)),
        ([(16, 4), (16, 4), (2, 0)], 0, (8, 4, 1)),
        ([(4, 0), (12, 0)], 0, (2, 4, 0)),
        ([(3, 0), (3, 0), (2, 0)], 4, (4, 1, 0)),
    ],
)
def test_workers_share_the_machines(nodes, workers, found):
    assert room(nodes, workers) == found


@pytest.mark.parametrize("nodes, workers", [([(2, 0)], 3), ([(8, 2)], 3), ([(0, 0)], 1)])
def test_more_workers_than_there_is_room_for_are_refused(nodes, workers):
    with pytest.raises(ValueError, match=f"--workers {workers} is more"):
        room(nodes, workers)


def test_the_table_shows_what_each_worker_does():
    pool = Scripted(2, lambda *_: DONE)
    made = Scheduler([Job(1, "a mug", {}, {}, key="a"), Job(2, "b", {}, {}, key="b")], Memory(), pool)
    made.waiting.popleft()
    made.running["w0"] = Job(1, "a mug", {}, {}, key="a")
    made.lost_workers["w1"] = "it died"
    lines = table(made, {"w0": {"node": "LucidDream", "step": 3, "steps": 9, "left_s": 75}}, pool.names)
    assert lines[0] == "jobs: 1 waiting, 1 running, 0 done, 0 failed" == f"jobs: {counts(made)}"
    assert lines[2].startswith("w0      a mug") and "LucidDream 3/9" in lines[2]
    assert lines[2].endswith("1 min 15 s") and "it died" in lines[3]
    assert duration(7200) == "2 h 00 min" and duration(None) == ""
