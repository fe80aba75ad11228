"""The tasks that the pool bound is measured on, of `contrastive.tasks`."""

from contrastive.tasks import additive, bent, cubic, gaussian, student

__all__ = ["TASKS"]

TASKS = {
    **{f"gaussian-{i}": gaussian(float(i)) for i in (2, 4, 6, 8, 10)},
    "cubic-6": bent(gaussian(6.0), None, cubic),
    "dense-25": gaussian(1.2922, 25),
    "student-1-1": student(1, 1),
    "student-5-2": student(5, 2),
    "additive-0.1": additive(0.1),
    "additive-0.01": additive(0.01),
}
