"""Frozen teachers against the models of transformers, and against official names where there is no such model.

The networks are tiny and random; every hidden state has to agree.
"""

import re

import jax
import numpy as np
import pytest
import torch
import transformers

import mim_jax
from mim_jax.errors import ConfigError, WeightsError
from mim_jax.interop import import_with_report
from mim_jax.models import teachers
from mim_jax.normalization import CLIP, IMAGENET
from mim_jax.training.flops import count_flops

SIZES = dict(width=32, depth=3, heads=4, patch_size=4)
TRANSFORMERS = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, patch_size=4, image_size=16)


def student_config(**changes):
    return mim_jax.resolve(
        dict(method="mae", image_size=16, model=dict(width=16, depth=2, heads=2, patch_size=4), **changes)
    )


def make_teacher(name, until=None, config=None, **changes):
    section = teachers.section(name, **(SIZES | changes))
    return teachers.build(section, config or student_config(), until=until)


def read(teacher, source, layout=None):
    variables, report = import_with_report(teacher.objective, source, layout or teacher.layout, resize_positions=True)
    assert not report.random
    return teacher.take(variables)


def randomize(model, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            is_norm = (parameter.ndim == 1 and "weight" in name) or "lambda" in name
            parameter.copy_(1 + 0.3 * noise if is_norm else 0.2 * noise)
    return model.eval()


def images(size=16, seed=0):
    return np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype(np.float32)


def to_torch(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def clip_model(**changes):
    config = transformers.CLIPVisionConfig(**(TRANSFORMERS | dict(intermediate_size=128) | changes))
    config._attn_implementation = "eager"
    return randomize(transformers.CLIPVisionModel(config))


def assert_close(ours, theirs, tolerance=1e-5):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def hidden_states(model, pixels, skip=0):
    """Outputs of all blocks `[L, B, 1 + N, C]` without `skip` tokens after the class token, and the last attention."""
    with torch.no_grad():
        found = model(pixel_values=pixels, output_hidden_states=True, output_attentions=True)
    layers = torch.stack(found.hidden_states[1:])
    return torch.cat([layers[:, :, :1], layers[:, :, 1 + skip :]], dim=2), found


def test_clip_equals_transformers():
    model = clip_model()
    teacher = make_teacher("clip_vit_b16")
    params = read(teacher, model.state_dict(), "transformers/clip")
    pixels = images()
    features = teacher(params, pixels)
    layers, found = hidden_states(model, to_torch(teacher.prepare(pixels)))
    assert_close(features.layers, layers)
    assert_close(teacher.class_attention(params, features), found.attentions[-1][:, :, 0, 1:])
    assert_close(features.tokens[:, 0], found.pooler_output)


def test_openai_names_give_what_transformers_names_give():
    state = clip_model().state_dict()
    state = {name.removeprefix("vision_model."): tensor for name, tensor in state.items()}
    renamed = {
        "visual.class_embedding": state["embeddings.class_embedding"],
        "visual.conv1.weight": state["embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["embeddings.position_embedding.weight"],
        "visual.proj": torch.zeros(32, 8),
        "positional_embedding": torch.zeros(5, 8),
        "transformer.resblocks.0.ln_1.weight": torch.zeros(8),
    }
    for ours, theirs in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        renamed |= {f"visual.{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    pairs = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"))
    pairs += (("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"))
    for layer in range(3):
        old, new = f"encoder.layers.{layer}.", f"visual.transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            renamed |= {f"{new}{a}.{kind}": state[f"{old}{b}.{kind}"] for a, b in pairs}
            split = [state[f"{old}self_attn.{which}_proj.{kind}"] for which in "qkv"]
            renamed[f"{new}attn.in_proj_{kind}"] = torch.cat(split)
    # OpenAI's archives are half precision.
    renamed = {name: tensor.half() for name, tensor in renamed.items()}
    teacher = make_teacher("clip_vit_b16")
    params = read(teacher, renamed)
    expected = read(teacher, {name: tensor.half() for name, tensor in state.items()}, "transformers/clip")
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert params["stack"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == np.float32


def test_dino_equals_transformers():
    config = transformers.ViTConfig(**TRANSFORMERS, intermediate_size=128, layer_norm_eps=1e-6)
    config._attn_implementation = "eager"
    model = randomize(transformers.ViTModel(config, add_pooling_layer=False))
    teacher = make_teacher("dino_vit_b16")
    params = read(teacher, model.state_dict(), "transformers/vit")
    pixels = images()
    features = teacher(params, pixels)
    layers, found = hidden_states(model, to_torch(pixels))
    assert_close(features.layers, layers)
    assert_close(features.tokens, found.last_hidden_state)
    assert_close(teacher.class_attention(params, features), found.attentions[-1][:, :, 0, 1:])


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2_equals_transformers(registers, gated):
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    extra = dict(num_register_tokens=registers) if registers else {}
    config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS, mlp_ratio=4, use_swiglu_ffn=gated, **extra)
    config._attn_implementation = "eager"
    model = randomize(getattr(transformers, f"{kind}Model")(config))
    teacher = make_registers_teacher(registers, gated)
    params = read(teacher, model.state_dict(), "transformers/dinov2" + (":registers" if registers else ""))
    pixels = images()
    features = teacher(params, pixels)
    layers, found = hidden_states(model, to_torch(pixels), skip=registers)
    assert_close(features.layers, layers)
    last = found.last_hidden_state
    assert_close(features.tokens, torch.cat([last[:, :1], last[:, 1 + registers :]], dim=1))


def make_registers_teacher(registers, gated):
    """DINOv2 in miniature; its hidden width of gated blocks is 2/3 of 4D, up to a multiple of 8."""
    name = "dinov2_vit_b14_reg" if registers else "dinov2_vit_b14"
    architecture = teachers.ARCHITECTURES[name]
    model = dict(architecture.model, num_registers=registers)
    if gated:
        model |= dict(activation="swiglu", mlp_ratio=88 / 32)
    teachers.ARCHITECTURES["tiny"] = teachers.Architecture(architecture.layout, model, architecture.constants)
    try:
        return make_teacher("tiny")
    finally:
        del teachers.ARCHITECTURES["tiny"]


def test_dinov2_official_names_equal_those_of_transformers():
    config = transformers.Dinov2WithRegistersConfig(**TRANSFORMERS, mlp_ratio=4, num_register_tokens=4)
    state = randomize(transformers.Dinov2WithRegistersModel(config)).state_dict()
    teacher = make_registers_teacher(4, False)
    expected = read(teacher, state, "transformers/dinov2:registers")
    official = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "register_tokens": state["embeddings.register_tokens"],
        "mask_token": state["embeddings.mask_token"],
    }
    patch = "embeddings.patch_embeddings.projection"
    for kind in ("weight", "bias"):
        official[f"patch_embed.proj.{kind}"] = state[f"{patch}.{kind}"]
        official[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    for layer in range(3):
        old = next(name for name in state if f"layer.{layer}." in name or f"layers.{layer}." in name)
        old, new = old[: old.index(f".{layer}.") + 3], f"blocks.0.{layer}."
        layer_state = {name.removeprefix(old): tensor for name, tensor in state.items() if name.startswith(old)}
        layer_state = {_old_spelling(name): tensor for name, tensor in layer_state.items()}
        for kind in ("weight", "bias"):
            split = [layer_state[f"attention.attention.{which}.{kind}"] for which in ("query", "key", "value")]
            official[f"{new}attn.qkv.{kind}"] = torch.cat(split)
            official[f"{new}attn.proj.{kind}"] = layer_state[f"attention.output.dense.{kind}"]
            official |= {
                f"{new}{m}.{kind}": layer_state[f"{m}.{kind}"] for m in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            }
        official |= {f"{new}ls{i}.gamma": layer_state[f"layer_scale{i}.lambda1"] for i in (1, 2)}
    jax.tree.map(np.testing.assert_array_equal, read(teacher, {"teacher": official}), expected)


def _old_spelling(name):
    """transformers 5 renamed attention modules in memory."""
    for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
        name = name.replace(f"attention.{new}", f"attention.{old}")
    return name.replace("attention.o_proj", "attention.output.dense")


def test_distilled_deit_equals_transformers():
    config = transformers.DeiTConfig(**TRANSFORMERS, intermediate_size=128, layer_norm_eps=1e-6)
    model = randomize(transformers.DeiTModel(config, add_pooling_layer=False))
    teacher = make_teacher("deit_vit_b16_distilled")
    state = _timm_state(model.state_dict())
    params = read(teacher, {"model": state})
    pixels = images()
    with torch.no_grad():
        expected = model(pixel_values=to_torch(pixels)).last_hidden_state
    assert_close(teacher(params, pixels).tokens, torch.cat([expected[:, :1], expected[:, 2:]], dim=1))


def _timm_state(state):
    """A DeiT of transformers under the names of its official code."""
    official = {
        "cls_token": state["embeddings.cls_token"],
        "dist_token": state["embeddings.distillation_token"],
        "pos_embed": state["embeddings.position_embeddings"],
    }
    for kind in ("weight", "bias"):
        official[f"patch_embed.proj.{kind}"] = state[f"embeddings.patch_embeddings.projection.{kind}"]
        official[f"norm.{kind}"] = state[f"layernorm.{kind}"]
    pairs = (("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("attn.proj", "attention.output.dense"))
    pairs += (("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"))
    for layer in range(3):
        old = next(name for name in state if f".{layer}." in f".{name}")
        old = old[: old.index(f"{layer}.") + 2]
        found = {
            _old_spelling(name.removeprefix(old))
            .replace("mlp.fc1", "intermediate.dense")
            .replace("mlp.fc2", "output.dense"): tensor
            for name, tensor in state.items()
            if name.startswith(old)
        }
        for kind in ("weight", "bias"):
            official |= {f"blocks.{layer}.{a}.{kind}": found[f"{b}.{kind}"] for a, b in pairs}
            split = [found[f"attention.attention.{which}.{kind}"] for which in ("query", "key", "value")]
            official[f"blocks.{layer}.attn.qkv.{kind}"] = torch.cat(split)
    return official


def test_deit3_has_no_position_for_its_class_token():
    teacher = make_teacher("deit3_vit_b16")
    params = teacher.init(jax.random.key(0))
    assert params["position"]["table"].shape == (16, 32)
    assert params["stack"]["blocks"]["gamma1"].shape == (3, 32)


def test_positions_of_another_grid_are_resized_as_transformers_does():
    model = clip_model(image_size=24)
    teacher = make_teacher("clip_vit_b16")
    params = read(teacher, model.state_dict(), "transformers/clip")
    pixels = images()
    with torch.no_grad():
        expected = model(pixel_values=to_torch(teacher.prepare(pixels)), interpolate_pos_encoding=True)
    assert_close(teacher(params, pixels).layers[-1], expected.last_hidden_state)


def test_dinov2_positions_are_resized_as_transformers_does():
    config = transformers.Dinov2Config(**(TRANSFORMERS | dict(image_size=28)), mlp_ratio=4)
    model = randomize(transformers.Dinov2Model(config))
    teacher = make_teacher("dinov2_vit_b14")
    params = read(teacher, model.state_dict(), "transformers/dinov2")
    with torch.no_grad():
        expected = model(pixel_values=to_torch(images())).last_hidden_state
    assert_close(teacher(params, images()).tokens, expected)


@pytest.mark.parametrize(
    ("changes", "key"), [(dict(hidden_act="gelu"), "hidden_act"), (dict(num_attention_heads=8), "num_attention_heads")]
)
def test_a_directory_whose_config_says_otherwise_is_refused(tmp_path, changes, key):
    clip_model().save_pretrained(tmp_path / "right")
    clip_model(**changes).save_pretrained(tmp_path / "wrong")
    teacher = make_teacher("clip_vit_b16")
    read(teacher, tmp_path / "right", "transformers/clip")
    with pytest.raises(WeightsError, match=key):
        read(teacher, tmp_path / "wrong", "transformers/clip")


def test_an_own_run_does_not_teach_as_what_it_is_not():
    assert make_teacher("vit").constants is None
    assert np.allclose(make_teacher("mae_vit_b16").constants, IMAGENET)


def test_only_the_blocks_that_are_run_are_kept():
    whole, part = make_teacher("dino_vit_b16"), make_teacher("dino_vit_b16", until=2)
    variables = whole.objective.init(jax.random.key(0), whole.objective.batch_spec())
    params = part.take(variables)
    assert params["stack"]["blocks"]["norm1"]["scale"].shape == (2, 32)
    assert "norm" not in params
    pixels = images()
    features = whole(whole.take(variables), pixels)
    np.testing.assert_array_equal(part(params, pixels).tokens, features.layers[1])

    ratio = count_flops(part, params, pixels) / count_flops(whole, whole.take(variables), pixels)
    assert 0.6 < ratio < 0.72  # two of three blocks


def test_the_teacher_sees_the_batch_in_its_own_normalisation():
    teacher = make_teacher("clip_vit_b16")
    pixels = np.random.default_rng(0).uniform(size=(1, 16, 16, 3)).astype(np.float32)
    ours, its = ((pixels - np.asarray(mean)) / np.asarray(std) for mean, std in (IMAGENET, CLIP))
    np.testing.assert_allclose(teacher.prepare(ours.astype(np.float32)), its, atol=1e-5)
    same = make_teacher("dino_vit_b16")
    np.testing.assert_allclose(same.prepare(ours), ours, rtol=1e-6)


def test_another_patch_size_means_another_image_size():
    teacher = make_teacher("clip_vit_l14", patch_size=3)
    assert teacher.encoder.image_size == (12, 12)
    assert teacher.prepare(images()).shape == (2, 12, 12, 3)
    expected = torch.nn.functional.interpolate(to_torch(images()), size=(12, 12), mode="bicubic")
    clip, imagenet = ([np.asarray(values)[None, None, None] for values in pair] for pair in (CLIP, IMAGENET))
    expected = (expected.permute(0, 2, 3, 1).numpy() * imagenet[1] + imagenet[0] - clip[0]) / clip[1]
    np.testing.assert_allclose(teacher.prepare(images()), expected, atol=1e-5)


def test_permuted_patches_give_permuted_features():
    teacher = make_teacher("dino_vit_b16")
    params, pixels = teacher.init(jax.random.key(0)), images()
    order = np.random.default_rng(1).permutation(16)
    whole = teacher(params, pixels).tokens
    permuted = teacher(params, pixels, ids_keep=np.tile(order[None], (2, 1))).tokens
    np.testing.assert_allclose(permuted[:, 1:], whole[:, 1:][:, order], atol=2e-5)


def test_no_gradient_reaches_a_teacher_or_the_images_through_it():
    teacher = make_teacher("dino_vit_b16")
    params = teacher.init(jax.random.key(0))
    gradients = jax.grad(lambda p, x: sum(f.sum() for f in teacher(p, x)), argnums=(0, 1))(params, images())
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_bfloat16_matrices_are_stored_and_multiplied_as_such():
    teacher = make_teacher("dino_vit_b16", dtype="bfloat16")
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes bfloat16 and float32
        params = teacher.init(jax.random.key(0))
        program = jax.jit(teacher).lower(params, images()).as_text()
    factors = re.findall(r"dot_general.*: \(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\)", program)
    assert len(factors) == 7 and set(factors) == {("bf16", "bf16")}  # patches, four of attention, two of the MLP
    assert params["stack"]["blocks"]["mlp"]["fc1"]["kernel"].dtype == jax.numpy.bfloat16
    assert params["norm"]["scale"].dtype == np.float32


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("dino_vit_b16", 85_798_656),
        ("dinov2_vit_b14", 86_579_712),
        ("dinov2_vit_b14_reg", 86_582_016 + 768),  # whose class token has a position of its own here
        ("clip_vit_b16", 86_193_152 - 768 * 512 - 512 + 0),  # without the projection
        ("deit_vit_b16", 86_567_656 - 769_000),  # without the classifier
        ("deit3_vit_b16", 86_585_320 - 769_000),
    ],
)
def test_parameter_counts(name, count):
    size = 518 if "dinov2" in name else 224
    config = student_config()
    config.image_size, config.model.patch_size = size, 14 if "dinov2" in name else 16
    teacher = teachers.build(teachers.section(name), config)
    shapes = jax.eval_shape(teacher.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_errors_name_the_teacher():
    with pytest.raises(ConfigError, match="There is no teacher 'clip_vit'; choose one of clip_vit_b16"):
        make_teacher("clip_vit")
    with pytest.raises(ConfigError, match="Block 4 of the teacher 'dino_vit_b16' is asked for, which has 3"):
        make_teacher("dino_vit_b16", until=4)
    teacher = make_teacher("dinov2_vit_b14_reg")
    params = teacher.init(jax.random.key(0))
    with pytest.raises(ConfigError, match="no registers"):
        teacher.class_attention(params, teacher(params, images()))
    with pytest.raises(ConfigError, match="a teacher of colour images needs 3"):
        make_teacher("dino_vit_b16", config=student_config(channels=2, data=dict(mean=(0.0, 0.0), std=(1.0, 1.0))))
