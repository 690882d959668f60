"""Models and inputs that cannot be explained are errors that say what to do; odd ones that can be are explained rightly."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.relevance import presets, run
from heatproof.tracing import first_not_finite
from support.nets import TinyCNN, TinyViT
from support.odd_calls import GOING_BACK, METHODS, SOME, Whole, explain


def refused_by_all(
    model: nn.Module,
    error: type[Exception],
    message: str,
    images: Tensor | None = None,
    methods: Sequence[str] = METHODS,
) -> None:
    for method in methods:
        with pytest.raises(error, match=message):
            explain(model, images, method=method)


def with_part(**parts: nn.Module) -> nn.Module:
    model = TinyViT(depth=1).eval()
    for name, part in parts.items():
        setattr(model, name, part)
    return model


# --- what the model returns


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda m, x: (m(x), x), "got tuple. Wrap it"),
        (lambda m, x: {"logits": m(x), "loss": 0}, "got dict with 'logits', 'loss'. Wrap it"),
        (lambda m, x: m(x)[:, 0], r"logits of shape \[B, K\], got \(1,\)"),
        (lambda m, x: m(x)[:, :, None], r"logits of shape \[B, K\], got \(1, 5, 1\)"),
        (lambda m, x: m(x).argmax(1, keepdim=True), r"floating-point logits .* torch.int64"),
        (lambda m, x: torch.complex(m(x), m(x)), r"floating-point logits .* torch.complex64"),
        (lambda m, x: m(x).repeat(2, 1), "2 rows for 1 images"),
    ],
    ids=["tuple", "dict", "one axis", "three axes", "integers", "complex", "rows"],
)
def test_outputs_that_are_no_logits(outputs: Callable[[nn.Module, Tensor], Any], message: str) -> None:
    refused_by_all(Whole(outputs).eval(), InputError, message)


def test_an_object_with_logits_is_as_good_as_its_logits() -> None:
    @dataclass
    class Output:
        logits: Tensor
        hidden: Tensor

    model = Whole(lambda m, x: Output(m(x), x)).eval()
    images = torch.rand(2, 3, 32, 32)
    for method in METHODS:
        assert torch.equal(explain(model, images, method=method), explain(model.inner, images, method=method)), method


def test_a_target_out_of_range() -> None:
    for method in METHODS:
        with pytest.raises(InputError, match=r"targets must lie in 0..4 .* got values from 5 to 5"):
            hp.explain(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), [5], method=method)


# --- what the model is


def scripted() -> nn.Module:
    return torch.jit.script(TinyCNN().eval())


def traced() -> nn.Module:
    return torch.jit.trace(TinyCNN().eval(), torch.rand(1, 3, 32, 32))


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(TinyViT(depth=1), {nn.Linear}, dtype=torch.qint8).eval()


def compiled_in_place() -> nn.Module:
    model = TinyViT(depth=1).eval()
    model.head.compile(backend="eager")
    return model


def made_in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return TinyViT(depth=1).eval()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (scripted, r"model \(RecursiveScriptModule\) runs in TorchScript.*Python module"),
        (traced, r"model \(TopLevelTracedModule\) runs in TorchScript"),
        (lambda: with_part(norm=torch.jit.script(nn.LayerNorm(48)).eval()), "module 'norm' .* runs in TorchScript"),
        (lambda: torch.compile(TinyViT(depth=1).eval(), backend="eager"), r"model \(OptimizedModule\) .*_orig_mod"),
        (
            lambda: with_part(norm=torch.compile(nn.LayerNorm(48).eval(), backend="eager")),
            r"module 'norm' \(OptimizedModule\) is compiled.*_orig_mod",
        ),
        (compiled_in_place, r"module 'head' \(Linear\) is compiled in place.*deepcopy"),
        (quantized, "module 'blocks.0.attn.qkv' .*is quantized.*lime"),
        (made_in_inference_mode, "inference mode.*deepcopy"),
    ],
    ids=["script", "trace", "scripted part", "compile", "compiled part", "in place", "quantized", "inference"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_models_whose_operations_cannot_be_seen(build: Callable[[], nn.Module], message: str) -> None:
    refused_by_all(build(), UnsupportedModelError, message)


@pytest.mark.parametrize("build", [scripted, quantized])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_they_can_be_explained_by_running_them(build: Callable[[], nn.Module]) -> None:
    assert explain(build(), method="lime", samples=20, segments=6).abs().sum() > 0


def test_wrappers_for_several_devices_or_processes_are_refused() -> None:
    wrapped = nn.DataParallel(TinyViT(depth=1)).eval()
    wrapped.device_ids = [0, 1]
    with pytest.raises(UnsupportedModelError, match="several devices.*attribute module"):
        run(wrapped, torch.rand(1, 3, 32, 32), presets.lrp_z())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        refused_by_all(
            nn.parallel.DistributedDataParallel(TinyViT(depth=1)).eval(),
            UnsupportedModelError,
            "processes.*attribute module",
        )
    finally:
        torch.distributed.destroy_process_group()


def test_what_the_messages_advise_works() -> None:
    plain = TinyViT(depth=1).eval()
    expected = explain(plain, images := torch.rand(1, 3, 32, 32), method="lrp_epsilon")
    wrapped = torch.compile(plain, backend="eager")
    assert torch.equal(explain(wrapped._orig_mod, images, method="lrp_epsilon"), expected)
    in_place = copy.deepcopy(plain)
    in_place.compile(backend="eager")
    assert torch.equal(explain(copy.deepcopy(in_place), images, method="lrp_epsilon"), expected)
    with torch.inference_mode():
        stiff = copy.deepcopy(plain)
    assert torch.equal(explain(copy.deepcopy(stiff), images, method="lrp_epsilon"), expected)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_sent_back_to_its_model() -> None:
    program = torch.export.export(TinyCNN().eval(), (torch.rand(1, 3, 32, 32),))
    with pytest.raises(InputError, match="got ExportedProgram.*give the module that it was exported from"):
        hp.explain(program, torch.rand(1, 3, 32, 32), method="lrp_z")
    with pytest.raises(InputError, match="training mode.*exported program cannot: use the model that it was exported"):
        explain(program.module(), method="lrp_z")


def test_a_part_in_training_mode_is_named() -> None:
    model = TinyCNN().eval()
    model.bn2.train()
    refused_by_all(model, InputError, r"module 'bn2' \(BatchNorm2d\) is in training mode.*model.eval\(\)")
    with pytest.raises(InputError, match="The model is in training mode"):
        explain(TinyViT(depth=1), method="attention")


# --- numbers


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        (lambda m: m.half(), torch.rand(1, 3, 32, 32), r"float16 on cpu, the images .*to\('cpu', torch.float16\)"),
        (lambda m: m, torch.rand(1, 3, 32, 32).double(), r"torch.float32 on cpu, the images torch.float64"),
        (lambda m: m.to("meta"), torch.rand(1, 3, 32, 32), r"torch.float32 on meta, the images torch.float32 on cpu"),
        (lambda m: m, torch.rand(1, 3, 32, 32).cfloat(), "float tensor .* got torch.complex64"),
        (lambda m: m, torch.ones(1, 3, 32, 32).long(), "float tensor .* got torch.int64"),
        (lambda m: m, torch.rand(1, 3, 0, 32), r"float tensor .* got torch.float32 \[1, 3, 0, 32\]"),
        (lambda m: m, torch.full((1, 3, 32, 32), torch.inf), "images hold NaN or infinite values"),
        (lambda m: m, torch.rand(1, 3, 32, 32).to("meta"), "meta or fake tensors"),
    ],
    ids=["half", "double", "device", "complex", "integer", "empty", "infinite", "meta"],
)  # fmt: skip
def test_numbers_that_do_not_fit(model: Callable[[nn.Module], nn.Module], images: Tensor, message: str) -> None:
    refused_by_all(model(TinyViT(depth=1).eval()), InputError, message, images)


def test_a_models_own_failure_is_not_disguised() -> None:
    with pytest.raises(RuntimeError, match="to have 3 channels"):
        explain(TinyViT(depth=1).eval(), torch.rand(1, 2, 32, 32), method="lrp_z")


def nan_in(name: str) -> nn.Module:
    model = TinyViT(depth=1).eval()
    model.get_parameter(name).data[0] = torch.nan
    return model


class Overflow(nn.Module):
    """exp overflows in a module of its own, after a mask of −∞ that is no fault."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = TinyViT(depth=1)
        self.scale = nn.ModuleDict({"exp": Whole(lambda _, x: torch.exp(x * 1000), nn.Identity())})

    def forward(self, x: Tensor) -> Tensor:
        masked = x.masked_fill(x > 0.9, -torch.inf).softmax(-1)
        wrong = self.scale["exp"](x.mean((1, 2, 3)) + masked.sum((1, 2, 3)))
        return self.vit(x) + (wrong - wrong)[:, None]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nan_in("head.weight"), "first in the parameter 'head.weight'"),
        (Overflow, "first in the operation 'exp' in module scale.exp"),
        (lambda: Whole(lambda m, x: m(x / (x - x))), r"first in the operation 'div' in module \(the model itself\)"),
        (lambda: Whole(lambda m, x: m(x * torch.nan)), r"first in the operation 'mul' in module \(the model itself\)"),
    ],
    ids=["weights", "overflow", "division", "a constant"],
)
def test_values_that_are_not_finite_are_traced_to_where_they_begin(
    build: Callable[[], nn.Module], message: str
) -> None:
    refused_by_all(build().eval(), InputError, message)


def test_one_bad_image_among_good_ones_is_found() -> None:
    """Also where the logits look well: the slope of an overflow is what goes wrong."""
    model = Whole(lambda m, x: m(x) * torch.tanh(torch.exp(x.amax((1, 2, 3)))[:, None])).eval()
    images = torch.rand(3, 3, 32, 32)
    assert torch.isfinite(explain(model, images, method="saliency")).all()
    images[2] += 1000
    assert torch.isfinite(model(images)).all()
    with pytest.raises(InputError, match="operation 'exp'"):
        explain(model, images, method="saliency")


def test_an_undefined_map_of_a_sound_model_is_no_error() -> None:
    """Relevance of 1 at a logit of exactly 0 is undefined, and NaN says so."""
    model = Whole(lambda m, x: torch.cat([m(x), (x * 0).sum((1, 2, 3))[:, None]], 1)).eval()
    images = torch.rand(1, 3, 32, 32)
    assert hp.explain(model, images, [5], method="lrp_zplus").isnan().all()
    assert first_not_finite(model, images) is None


# --- what does not depend on the image


@pytest.mark.parametrize(
    "cut",
    [
        lambda m, x: m(x.detach()),
        lambda m, x: m(x.data),
        lambda m, x: m(torch.from_numpy(x.detach().numpy())),
        torch.no_grad()(lambda m, x: m(x)),
        lambda m, x: F.one_hot(m(x).argmax(1), 5).float(),
        lambda m, x: m(torch.zeros_like(x)),
    ],
    ids=["detach", "data", "numpy", "no_grad", "argmax", "constant"],
)
def test_a_target_without_influence_is_an_error(cut: Callable[[nn.Module, Tensor], Tensor]) -> None:
    message = "does not depend on what is to be explained.*lime"
    refused_by_all(Whole(cut).eval(), UnsupportedModelError, message, methods=GOING_BACK)


def test_one_constant_logit_among_others_has_a_map_of_zeros() -> None:
    model = Whole(lambda m, x: torch.cat([m(x), torch.ones(len(x), 1)], 1)).eval()
    images = torch.rand(2, 3, 32, 32)
    for method in ("lrp_epsilon", "lrp_zplus", "saliency", "gradcam"):
        maps = hp.explain(model, images, [[0, 5], [0, 5]], method=method)
        assert torch.equal(maps[:, 1], torch.zeros(2, 32, 32)), method
        assert torch.equal(maps[:, 0], explain(model.inner, images, method=method)), method


# --- what cannot be followed


def differentiates(m: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        m(leaf).sum().backward()
    return m(x)


def differentiates_its_input(m: nn.Module, x: Tensor) -> Tensor:
    logits = m(x)
    if logits.requires_grad:
        torch.autograd.grad(logits.sum(), x, create_graph=True)
    return logits


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: checkpoint(m, x, use_reentrant=False), "checkpoint.*Switch that off"),
        (lambda m, x: checkpoint(m, x, use_reentrant=True), "checkpoint.*Switch that off"),
        (lambda m, x: m(torch.from_numpy(x.numpy())), "leaves torch .'numpy'"),
        (differentiates, "differentiates, .*'backward'"),
        (differentiates_its_input, "differentiates, .*'grad'"),
        (lambda m, x: torch.func.vmap(lambda v: m(v[None])[0])(x), "torch.func"),
    ],
    ids=["checkpoint", "reentrant", "numpy", "backward", "autograd.grad", "vmap"],
)
@pytest.mark.filterwarnings("ignore")
def test_detours_that_cannot_be_followed(function: Callable[..., Tensor], message: str) -> None:
    refused_by_all(Whole(function).eval(), UnsupportedModelError, message)


def attends(x: Tensor, p: float) -> Tensor:
    tokens = x.flatten(2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=p).view_as(x)


def multi_head(x: Tensor, p: float) -> Tensor:
    tokens, weight = x[:, 0].transpose(0, 1), torch.eye(32)
    found, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, 32, 2, weight.repeat(3, 1), None, None, None, False, p, weight, None, need_weights=False
    )
    return x + found.transpose(0, 1)[:, None]


DROPOUTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "attention": attends,
    "multi-head attention": multi_head,
    "dropout": F.dropout,
    "in place": lambda x, p: F.dropout(x * 1, p, inplace=True),
    "of channels": F.dropout2d,
    "alpha": lambda x, p: F.alpha_dropout(x, p, training=True),
    "torch's own": lambda x, p: torch.dropout(x, p, True),
    "by name": lambda x, p: torch.dropout(x, p=p, train=True),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_that_is_on_in_evaluation_mode_is_refused(name: str) -> None:
    drop = DROPOUTS[name]
    message = r"drops values at random although it is in evaluation mode \('\w*dropout\w*' in module .*self.training"
    refused_by_all(Whole(lambda m, x: m(drop(x, 0.2))).eval(), UnsupportedModelError, message)
    with pytest.raises(UnsupportedModelError, match=message):
        explain(Whole(lambda m, x: m(drop(x, 0.2))).eval(), method="lrp_z", strict=False)


@pytest.mark.parametrize("name", ["attention", "dropout", "torch's own"])
def test_dropout_of_nothing_and_dropout_that_is_off_are_nothing(name: str) -> None:
    images, inner = torch.rand(1, 3, 32, 32), TinyViT(depth=1)
    plain = Whole(lambda m, x: m(attends(x, 0.0) if name == "attention" else x), inner).eval()
    switched_off = lambda x: torch.dropout(F.dropout(x, 0.7, False), p=0.7, train=False)  # noqa: E731
    off = Whole(lambda m, x: m(switched_off(DROPOUTS[name](x, 0.0))), inner).eval()
    for method in ("lrp_zplus", "attn_lrp", "integrated_gradients"):
        torch.testing.assert_close(explain(off, images, method=method), explain(plain, images, method=method))


def written_part(make: Callable[[Tensor], Tensor], write: Callable[[Tensor, Tensor], object]) -> Callable[..., Tensor]:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = x * 1
        write(make(x), x)
        return m(x)

    return forward


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda x: x.chunk(3, 1)[1],
    "split": lambda x: torch.split(x, [1, 2], 1)[0],
    "unbind": lambda x: x.unbind(1)[2],
    "iteration": lambda x: next(iter(x)),
    "slice of a chunk": lambda x: x.chunk(3, 1)[0][..., :5],
    "chunk of a constant": lambda x: torch.zeros_like(x).chunk(3, 1)[0],
    "no_grad": lambda x: made_without_gradients(torch.zeros_like(x)),
    "image under no_grad": lambda x: made_without_gradients(x),
}
WRITES: dict[str, Callable[[Tensor, Tensor], object]] = {
    "relu": lambda part, _: part.relu_(),
    "tanh": lambda part, _: part.tanh_(),
    "mul": lambda part, _: part.mul_(0.5),
    "add": lambda part, x: part.add_(x.mean()),
    "setitem": lambda part, _: part.__setitem__((..., 0), part[..., 1] * 2),
    "copy": lambda part, _: part.copy_(part * 2),
    "unsqueeze_": lambda part, _: part.unsqueeze_(0),
}


def made_without_gradients(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x[:, :1]


@pytest.mark.parametrize(
    ("part", "write"),
    [
        *((part, "add") for part in PARTS),
        *((part, write) for part in ("chunk", "image under no_grad") for write in WRITES),
    ],
)
def test_a_write_into_a_part_that_torch_does_not_allow_is_an_error_of_ours(part: str, write: str) -> None:
    forward = written_part(PARTS[part], WRITES[write])
    model = Whole(forward).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).isfinite().all(), "it runs as long as nobody asks for gradients"
    message = rf"writes in place into a part of a tensor \('{write}' in module .*part.clone\(\)"
    for method in SOME:
        with pytest.raises(UnsupportedModelError, match=message):
            explain(model, method=method)


def test_what_the_message_about_parts_advises_works() -> None:
    images, inner = torch.rand(1, 3, 32, 32), TinyViT(depth=1)
    plain = Whole(lambda m, x: m(torch.cat([x[:, :1] * 0.5, x[:, 1:]], 1)), inner).eval()
    sliced = Whole(written_part(lambda x: x[:, :1], WRITES["mul"]), inner).eval()
    copied = Whole(lambda m, x: m(torch.cat([(p := x.split([1, 2], 1))[0].clone().mul_(0.5), p[1]], 1)), inner).eval()
    for method in SOME:
        expected = explain(plain, images, method=method)
        for model in (sliced, copied):
            torch.testing.assert_close(explain(model, images, method=method), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", ["compiles", "torch.func"])
def test_a_compiled_or_transformed_function_inside_a_model_cannot_be_followed(what: str) -> None:
    functions = {
        "compiles": torch.compile(lambda m, x: m(x).cos(), backend="eager"),
        "torch.func": lambda m, x: m(x) + torch.func.grad(lambda v: m(v).sum())(x).sum(),
    }
    model = Whole(functions[what]).eval()
    for method in ("attn_lrp", "lrp_zplus"):
        with pytest.raises(UnsupportedModelError, match=what):
            explain(model, method=method)


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_frozen_weights_do_not_hide_a_checkpoint(reentrant: bool) -> None:
    model = Whole(lambda m, x: checkpoint(m, x, use_reentrant=reentrant)).eval().requires_grad_(False)
    refused_by_all(model, UnsupportedModelError, "checkpoint.*Switch that off")


# --- odd, but right


def test_models_that_only_look_odd() -> None:
    plain, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)
    hooked, frozen, watched = (copy.deepcopy(plain) for _ in range(3))
    counts: list[int] = []
    hooked.norm.register_forward_hook(lambda module, args, output: counts.append(1))
    hooked.head.register_forward_pre_hook(lambda module, args: (args[0] * 1.0,))
    watched.blocks[0].attn.register_full_backward_hook(lambda module, before, after: counts.append(1))
    models = {
        "data parallel": nn.DataParallel(plain).eval(),
        "forward hooks": hooked,
        "backward hooks": watched,
        "frozen": frozen.requires_grad_(False),
        "functional call": Whole(
            lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)), plain
        ).eval(),
        "initialises by name": Whole(
            lambda m, x: m(x * nn.init.constant_(tensor=torch.empty(1), val=1.0)), plain
        ).eval(),
        "writes into its input": Whole(lambda m, x: m(x.mul_(2).div_(2)), plain).eval(),
    }
    for method in SOME:
        expected = explain(plain, images, method=method)
        for name, model in models.items():
            before = images.clone()
            found = explain(model, images, method=method)
            torch.testing.assert_close(
                found, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5, msg=f"{method}, {name}"
            )
            assert torch.equal(images, before), f"{method}, {name}"
    assert counts


def test_a_graph_module_is_as_good_as_its_model() -> None:
    plain, images = TinyCNN().eval(), torch.rand(2, 3, 32, 32)
    traced = torch.fx.symbolic_trace(plain)
    for method in METHODS:
        if "attention" not in hp.methods()[method].needs:
            assert torch.equal(explain(traced, images, method=method), explain(plain, images, method=method)), method
