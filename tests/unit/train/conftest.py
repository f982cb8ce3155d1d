"""A small regression problem with a real job around it."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from stillroom.jobs import Job
from stillroom.train.data import RecordSource
from stillroom.train.loop import Loss


@dataclass
class Points:
    x: torch.Tensor
    y: torch.Tensor
    record_ids: list

    @property
    def valid(self):
        return len(self.y)

    @property
    def tokens(self):
        return len(self.y)


class Net(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.inner = nn.Linear(4, 16)
        self.drop = nn.Dropout(dropout)
        self.outer = nn.Linear(16, 1)

    def forward(self, x):
        return self.outer(self.drop(torch.tanh(self.inner(x)))).squeeze(-1)


def squared_error(model, batch):
    error = (model(batch.x) - batch.y).square()
    return Loss(error.sum(), {"absolute": float(error.detach().sqrt().sum())})


@pytest.fixture
def make_problem():
    """Return a function that gives model, source and objective, always the same ones."""

    def make(*, batch_size=6, micro_tokens=10_000, dropout=0.0, poison=None):
        generator = torch.Generator().manual_seed(0)
        sizes = [1 + n % 5 for n in range(20)]  # records of unequal numbers of positions
        records = []
        for number, size in enumerate(sizes):
            x = torch.randn(size, 4, generator=generator)
            y = x.sum(-1)
            if number == poison:
                y = y * torch.nan
            records.append((str(number), x, y))

        def load(group):
            return Points(
                torch.cat([x for _, x, _ in group]),
                torch.cat([y for _, _, y in group]),
                [name for name, _, _ in group],
            )

        source = RecordSource(
            records,
            ids=[name for name, _, _ in records],
            lengths=sizes,
            valid=sizes,
            load=load,
            batch_size=batch_size,
            micro_tokens=micro_tokens,
            seed=3,
        )
        torch.manual_seed(1)
        return Net(dropout), source, squared_error

    return make


@pytest.fixture
def make_job(tmp_path):
    jobs = []

    def make(name="job", **options):
        jobs.append(Job.start(tmp_path / name, "kind: test\n", **options))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()
