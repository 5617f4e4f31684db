"""A fused model called in every way that the model could be called before."""

import copy
import pickle
import threading

import pytest
import torch
import transformers as hf
from torch import nn

import fastinfer
from families import answer, inputs, make
from fastinfer import fuse_


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hooks_come_and_go():
    model, x = make("mlp"), torch.randn(2, 5, 64)
    fusion = fuse_(model)
    before = model(x)
    assert fusion.fused == {"activation": 1}
    seen = []
    for register in (
        model[1].register_forward_pre_hook,
        model[1].register_forward_hook,
        model.register_forward_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        seen.clear()
        handle = register(lambda module, args, *output: seen.append(args[0].clone()))
        same(model(x), before)
        wanted, unfused = list(seen), copy.deepcopy(model)
        seen.clear()
        unfused(x)
        assert len(wanted) == len(seen) > 0
        for a, b in zip(wanted, seen, strict=True):
            same(a, b)
        handle.remove()
        seen.clear()
        same(model(x), before)
        assert not seen
    handle = model[1].register_forward_hook(lambda module, args, output: 0 * output)
    same(model(x)[0, 0], model[2].bias.detach())
    handle.remove()
    model[1].forward = lambda x: 0 * x
    same(model(x)[0, 0], model[2].bias.detach())


@torch.inference_mode()
def test_what_was_traced_without_hooks_serves_again_when_they_went():
    model, x = make("mlp"), torch.randn(2, 5, 64)
    fusion = fuse_(model, x)
    want, graphs = model(x), len(fusion.graphs)
    for _ in range(3):
        with model[1].register_forward_hook(lambda module, args, output: 0 * output):
            same(model(x)[0, 0], model[2].bias)
            model(x)
        graphs += 1  # that with the hook
        assert torch.equal(model(x), want)
        assert len(fusion.graphs) == graphs
    assert len(model._compiled_call_impl._traced) == 2, "it keeps every hook's"


@torch.inference_mode()
def test_a_module_that_takes_anothers_place_with_a_hook_of_its_own():
    model, x = make("mlp"), torch.randn(2, 5, 64)
    other = nn.GELU().eval()
    handle = other.register_forward_hook(lambda module, args, output: 0 * output)
    fuse_(model, x)
    before = model(x)
    model[1] = other
    same(model(x)[0, 0], model[2].bias)
    handle.remove()
    same(model(x), before)


@torch.inference_mode()
def test_many_models_in_one_process():
    """torch.compile keeps few graphs (eight) a code object: models must not share one."""
    with torch._dynamo.config.patch(recompile_limit=1):
        fusions = [fuse_(make("mlp"), torch.randn(2, 5, 64)) for _ in range(3)]
    assert all(len(fusion.graphs) == 1 for fusion in fusions)


@torch.inference_mode()
def test_more_variants_than_torch_compile_keeps():
    model = make("mlp")
    fuse_(model)
    with torch._dynamo.config.patch(recompile_limit=1):
        for dims in range(1, 4):
            x = torch.randn(*[2] * dims, 64)
            same(model(x), make("mlp")(x))


def test_gradients_run_unfused_and_are_right():
    model, original, given = make("bert"), make("bert"), inputs("bert", 2, 9)
    fuse_(model)
    with pytest.warns(UserWarning, match="ran unfused"):
        model(**given)[0].sum().backward()
    original(**given)[0].sum().backward()
    for p, q in zip(model.parameters(), original.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        assert p.grad is None or torch.equal(p.grad, q.grad)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = make("mlp")

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.mlp, x, use_reentrant=False)


@torch.no_grad()
def test_checkpointed():
    model, x = Checkpointed(), torch.randn(2, 5, 64)
    want = model(x)
    fusion = fuse_(model)
    same(model(x), want)
    assert fusion.reasons == ("it is checkpointed",)


@torch.no_grad()
def test_a_model_set_to_checkpoint_answers_as_before():
    model, original, given = make("bert"), make("bert"), inputs("bert", 2, 9)
    for m in (model, original):
        m.activation_checkpointing_enable()
        m.train()
    fuse_(model)
    answers = []
    for m in (model, original):
        torch.manual_seed(0)
        answers.append(answer(m, given))
    same(*answers)


def test_within_other_tracers():
    model, x = make("mlp"), torch.randn(2, 3, 64)
    want = make("mlp")(x).detach()
    fuse_(model)
    with torch.no_grad():
        same(model(x), want)
        same(torch.compile(nn.Sequential(model), backend="eager", fullgraph=True)(x), want)
        for strict in (False, True):
            same(torch.export.export(model, (x,), strict=strict).module()(x), want)
        same(torch.jit.trace(model, x)(x), want)
        same(torch.fx.symbolic_trace(model)(x), want)
        same(torch.func.vmap(model)(x), want)
        twice = {k: 2 * v for k, v in model.state_dict().items()}
        same(
            torch.func.functional_call(model, twice, x),
            torch.func.functional_call(make("mlp"), twice, x),
        )


@torch.no_grad()
def test_copies_states_and_dtypes():
    model, given = make("bert"), inputs("bert", 2, 9)
    fusion = fuse_(model.encoder)
    want = answer(model, given)
    assert fusion.fused["attention"] == 1
    same(answer(pickle.loads(pickle.dumps(model)), given), want)
    same(answer(copy.deepcopy(model), given), want)
    other = make("bert")
    for p in other.parameters():
        p.mul_(1.1)
    model.load_state_dict(other.state_dict())
    same(answer(model, given), answer(other, given))
    fuse_(model)  # around the fused encoder
    same(answer(model, given), answer(other, given))
    model.to(torch.bfloat16)
    error = (answer(model, given) - answer(other, given)).norm() / answer(other, given).norm()
    assert error < 2.0**-5, "a few roundings of 2^-9 one after another"
    summary = fastinfer.quantize_(model.float())
    assert summary.rows
    assert answer(model, given).isfinite().all()


def test_threads():
    model, original, wrong = make("mlp"), make("mlp"), []
    fuse_(model)

    @torch.inference_mode()
    def work(batch):
        for length in (1, 5, 9):
            x = torch.randn(batch, length, 64)
            if not torch.allclose(model(x), original(x), rtol=1e-4, atol=1e-4):
                wrong.append((batch, length))

    threads = [threading.Thread(target=work, args=(batch,)) for batch in (1, 2, 3, 4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_generate():
    import transformers as hf

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = hf.LlamaConfig(
        **sizes, num_key_value_heads=2, intermediate_size=96, vocab_size=100, pad_token_id=0
    )
    model = hf.LlamaForCausalLM(config).eval()
    original = copy.deepcopy(model)
    fusion = fuse_(model)
    ids = torch.randint(3, 100, (2, 6))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # padded on the left
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(ids, **options), original.generate(ids, **options))
    assert fusion.fused["attention"] == 1
    assert len(fusion.graphs) <= 4, "one for the prompt, one for its continuation, sizes as symbols"


@torch.inference_mode()
def test_generate_with_an_encoder_of_its_own():
    """transformers calls the encoder first, by itself: it is a fused model within a fused model."""
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4}
    model = hf.T5ForConditionalGeneration(
        hf.T5Config(**sizes, vocab_size=100, decoder_start_token_id=0)
    ).eval()
    ids, options = torch.randint(3, 100, (2, 7)), {"max_new_tokens": 6, "min_new_tokens": 6}
    want = model.generate(ids, **options)
    start = torch.randint(3, 100, (2, 4))
    whole = model(input_ids=ids, decoder_input_ids=start).logits
    encoder, rest = fuse_(model.get_encoder()), fuse_(model)
    assert torch.equal(model.generate(ids, **options), want)
    assert encoder.fused["attention"] == 1
    assert [graph.fused["attention"] for graph in rest.graphs] == [2, 2, 2]
    same(model(input_ids=ids, decoder_input_ids=start).logits, whole)
    assert rest.graphs[-1].fused["attention"] == 3  # traced as a whole
    assert len(encoder.graphs) == 1


@torch.inference_mode()
def test_calls_that_fit_pass_by_the_entry_of_torch_compile(monkeypatch):
    model, x = make("mlp"), torch.randn(2, 5, 64)
    fuse_(model)
    want, entered = model(x), []
    traced = model._compiled_call_impl._with(())
    entry = traced._compiled
    monkeypatch.setattr(traced, "_compiled", lambda *a, **k: entered.append(1) or entry(*a, **k))
    for size in ((2, 5, 64), (4, 9, 64)):
        x = torch.randn(size)
        assert torch.equal(model(x), entry(x))
    assert torch.equal(model(input=x), entry(x))
    assert entered == [1]  # a keyword is another way to call
    with model[1].register_forward_hook(lambda module, args, output: 0 * output):
        same(model(x)[0, 0], model[2].bias.detach())
    assert torch.equal(model(x), entry(x))
    assert entered == [1, 1]  # as whenever a hook went
    with torch.compiler.set_stance("force_eager"):
        same(model(x), entry(x))
    assert entered == [1, 1, 1]
    torch._dynamo.reset()
    assert torch.equal(model(x), entry(x))
    assert entered == [1, 1, 1, 1]
    assert want.shape == (2, 5, 64)


class Broken(nn.Module):
    """A model that torch.compile takes in two parts."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x) + 1


@torch.inference_mode()
def test_graph_breaks_stay_fused():
    model, x = Broken().eval(), torch.randn(3, 8)
    want = model(x)
    fusion = fuse_(model)
    for _ in range(3):
        same(model(x), want)
    assert [sum(g.fused.values()) for g in fusion.graphs] == [1, 1]
    assert model._compiled_call_impl._with(()).code.find((x,), {}) is None
