import sys

import pytest
import torch
from torch import nn

from stillroom.errors import ResourceError
from stillroom.train.distributed import gather_optimizer_state, shard_like, shard_modules


def test_says_what_sharding_needs(monkeypatch):
    with torch.device("meta"):
        elsewhere = nn.Linear(2, 2)
    with pytest.raises(ResourceError, match="on meta") as caught:
        shard_modules([elsewhere], 2)
    assert caught.value.code == "train.sharding"
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", None)
    with pytest.raises(ResourceError, match=r"torch 2\.6") as caught:
        shard_modules([nn.Linear(2, 2)], 2)


def test_what_is_not_sharded_stays_as_it_is():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert gather_optimizer_state(state) == state
    value = torch.ones(2, 3)
    assert shard_like(value, model.weight) is value
