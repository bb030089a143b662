"""An adapter's result does not change with its neighbours, its place, the bank's size or the token budget."""

from __future__ import annotations

import pytest
import torch

from selfedit.engine import AdapterBank, LoraSpec, fit
from selfedit.engine.selftest import random_job


def mine(**settings):
    return random_job(5, sequences=4, learning_rate=5e-4, epochs=2, **settings)


def train(model, spec, jobs, place, *, size=None, path="loop", budget=2048):
    with AdapterBank(model, spec, size or len(jobs)) as bank:
        bank.grouped = path == "grouped" and (model.device.type == "cpu" or bank.grouped)
        result = fit(bank, jobs, token_budget=budget)[place]
        return bank.parameters_NF[place].clone(), result


def same(a, b):
    return (a - b).norm() < 1e-5 * b.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_neighbours_place_and_size_do_not_matter(tiny_model, path, dropout):
    model, spec = tiny_model("llama"), LoraSpec(rank=8, alpha=16, dropout=dropout)
    job = mine(batch_size=3)
    alone, result = train(model, spec, [job], 0)
    neighbours = [random_job(k, sequences=k, learning_rate=1e-3, epochs=3) for k in range(1, 5)]
    for place, size, budget in [(0, 5, 2048), (2, 5, 48), (4, 9, 512)]:
        jobs = [*neighbours[:place], job, *neighbours[place:]]
        together, other = train(model, spec, jobs, place, size=size, path=path, budget=budget)
        assert same(together, alone)
        assert other.steps == result.steps
        assert other.last_loss == pytest.approx(result.last_loss, rel=1e-4)


def test_equal_jobs_become_equal_adapters(tiny_model):
    model, spec = tiny_model("qwen2"), LoraSpec(rank=8, alpha=16, dropout=0.1)
    with AdapterBank(model, spec, 3) as bank:
        fit(bank, [mine(), random_job(6, sequences=3, epochs=2), mine()])
        assert same(bank.parameters_NF[0], bank.parameters_NF[2])
        assert not same(bank.parameters_NF[0], bank.parameters_NF[1])


def test_dropout_acts_and_follows_the_seed(tiny_model):
    model = tiny_model("llama")
    kept, _ = train(model, LoraSpec(rank=8, alpha=16), [mine()], 0)
    dropped, _ = train(model, LoraSpec(rank=8, alpha=16, dropout=0.5), [mine()], 0)
    again, _ = train(model, LoraSpec(rank=8, alpha=16, dropout=0.5), [mine()], 0)
    assert not same(dropped, kept)
    assert torch.equal(dropped, again)


def test_gradient_with_dropout_is_the_gradient_of_the_masked_layer(tiny_model):
    """One layer's backward pass against autograd through the same masks."""
    from selfedit.engine.lora import Routing, dropout_mask

    model = tiny_model("llama")
    with AdapterBank(model, LoraSpec(rank=4, alpha=8, dropout=0.5, targets=("q_proj",), layers=(0, 0)), 2) as bank:
        for adapter in range(2):
            bank.reset(adapter, adapter)
            torch.nn.init.normal_(bank.state(adapter)[bank.names[0]][1])
        bank.enable_gradients()
        layer, group, spec = bank.layers[0], bank.groups[0], bank.spec
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(7, layer.in_features, generator=generator).to(model.device).requires_grad_()
        slope = torch.randn(7, layer.out_features, generator=generator).to(model.device)
        seeds = [101, 202]
        routing = Routing.of([1, 0], [4, 3], size=2, grouped=False, dropout_seeds=seeds)
        with bank.route(routing):
            layer(x).backward(slope)
        mine_x, x2 = x.grad.clone(), x.detach().clone().requires_grad_()
        a, b = group.a_NGI.clone().requires_grad_(), group.b_NOR[0].clone().requires_grad_()
        parts = []
        for seed, adapter, part in zip(seeds, routing.adapters, routing.by_segment(x2), strict=True):
            mask = dropout_mask(group, seed, part)
            assert set(mask.unique().tolist()) == {0.0, 2.0}
            parts.append(layer.base_layer(part) + (part * mask) @ a[adapter].t() @ b[adapter].t() * spec.scaling)
        torch.cat(parts).backward(slope)
        torch.testing.assert_close(mine_x, x2.grad)
        torch.testing.assert_close(group.grad_a_NGI, a.grad)
        torch.testing.assert_close(group.grad_b_NOR[0], b.grad)


@pytest.mark.parametrize("learning_rate", [3e38, 1e30])
def test_a_fit_that_diverges_fails_alone(tiny_model, path, learning_rate):
    model, spec = tiny_model("llama"), LoraSpec(rank=8, alpha=16)
    good, bad = mine(), random_job(9, sequences=3, epochs=4, learning_rate=learning_rate)
    alone, _ = train(model, spec, [good], 0)
    with AdapterBank(model, spec, 2) as bank:
        bank.grouped = path == "grouped" and (model.device.type == "cpu" or bank.grouped)
        failed, passed = fit(bank, [bad, good])
        assert failed.error is not None
        assert "step" in failed.error
        assert failed.steps < bad.steps
        assert passed.error is None
        assert same(bank.parameters_NF[1], alone)
        # The place is usable again.
        assert fit(bank, [good])[0].error is None
        assert same(bank.parameters_NF[0], alone)


def test_running_out_of_memory_halves_the_budget_and_loses_nothing(tiny_model, monkeypatch):
    import selfedit.engine.passes as passes_module

    model, spec = tiny_model("llama"), LoraSpec(rank=8, alpha=16)
    jobs = [random_job(k, sequences=3, epochs=2, learning_rate=5e-4) for k in range(4)]
    with AdapterBank(model, spec, 4) as bank:
        fit(bank, jobs)
        expected = bank.parameters_NF.clone()
    real, calls = passes_module.linear_cross_entropy, []

    def failing(hidden_LD, *rest):
        calls.append(hidden_LD.shape[0])
        if hidden_LD.shape[0] > 40:
            raise torch.OutOfMemoryError("no memory (made up)")
        return real(hidden_LD, *rest)

    monkeypatch.setattr(passes_module, "linear_cross_entropy", failing)
    with AdapterBank(model, spec, 4) as bank:
        with pytest.warns(UserWarning, match="out of memory: going on with") as caught:
            results = fit(bank, jobs, token_budget=128)
        assert [r.error for r in results] == [None] * 4
        assert same(bank.parameters_NF, expected)
    assert len([w for w in caught if "out of memory" in str(w.message)]) == 1
    assert max(calls) > 40
