"""Hybrid Distillation: a PyTorch forward written from hybrid_distill.md, and the sheet's checks.

There is no official code. The reference takes encoders under the names of timm, one block after another, and finds
redundant patches by all pairs of cosines.
"""

import itertools

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import mim_jax
from mim_jax import TokenMask
from mim_jax.errors import ConfigError
from mim_jax.interop import WeightsWarning, import_with_report
from mim_jax.normalization import CLIP, IMAGENET
from mim_jax.training.flops import count_flops
from tests.interop import test_official_layouts as official
from tests.tiny import ROOT, clock, synthetic_batch

HEADS, DEPTH, COUNTS, LAYER = 4, 3, (14, 10, 6), 1
SIZES = dict(depth=DEPTH, heads=HEADS, patch_size=4)
TINY = dict(
    method="hybrid_distill",
    image_size=16,
    model=dict(SIZES, width=16),
    contrastive=dict(SIZES, name="mae_vit_b16", width=24),
    reconstructive=dict(SIZES, name="mae_vit_b16", width=32),
    keep_shares=tuple(count / 16 for count in COUNTS),
    relations=("query_key", "value_value"),
    alpha=0.75,
    beta=2.0,
)
PLAIN = dict(keep_shares=(1.0, 1.0, 1.0))
KEY = jax.random.key(0)
MAE = "facebookresearch/mae"


def encoder_state(width, seed):
    shapes = {
        "cls_token": (1, 1, width),
        "patch_embed.proj.weight": (width, 3, 4, 4),
        "patch_embed.proj.bias": (width,),
        **official.norm_shapes("norm", width),
    }
    for layer in range(DEPTH):
        shapes |= official.block_shapes(f"blocks.{layer}", width)
    return official.random_state(shapes, seed) | {"pos_embed": official.sincos(width, True)}


def block(state, layer, x):
    one = {name.replace(f"blocks.{layer}.", "one.0."): tensor for name, tensor in state.items()}
    return official.blocks({name: t for name, t in one.items() if name.startswith("one.")}, "one", x, HEADS)


def embedded(state, images):
    return official.with_class_token(state, official.embed(state, images) + state["pos_embed"][:, 1:])


def inputs_and_output(state, images):
    """The input of every block, and the last one's output after the norm."""
    x, inputs = embedded(state, images), []
    for layer in range(DEPTH):
        inputs.append(x)
        x = block(state, layer, x)
    return inputs, official.norm(state, "norm", x)


def pick(x, alive):
    """The class token and the patches whose sorted numbers are `alive [B, K]`."""
    return torch.cat([x[:, :1], official.gather(x[:, 1:], alive)], dim=1)


def least_redundant(tokens, count):
    """Sorted places of the `count` tokens of smallest mean cosine with all of `tokens [B, K, D]`."""
    cosines = F.cosine_similarity(tokens[:, :, None], tokens[:, None], dim=-1).mean(dim=2)
    return cosines.argsort(dim=1)[:, :count].sort(dim=1).values


def select(state, images, counts=COUNTS):
    """The patches alive from each depth on, by the features of the network `state` at that depth."""
    inputs, _ = inputs_and_output(state, images)
    alive, sequence = torch.arange(16).expand(len(images), 16), []
    for depth, count in enumerate(counts):
        places = least_redundant(pick(inputs[depth], alive)[:, 1:], count)
        alive = alive.gather(1, places)
        sequence.append(alive)
    return sequence


def relations(state, layer, x):
    """Logits of queries with keys and of values with values, `[B, H, N, N]`."""
    qkv = official.linear(state, f"blocks.{layer}.attn.qkv", official.norm(state, f"blocks.{layer}.norm1", x))
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
    scale = q.shape[-1] ** 0.5
    return q @ k.transpose(2, 3) / scale, v @ v.transpose(2, 3) / scale


def reference(states, images, sequence, kernel, bias):
    """L_c and L_m of hybrid_distill.md, steps 3 to 5, over nested sets of patches."""
    student, contrastive, reconstructive = states
    x, before = embedded(student, images), torch.arange(16).expand(len(images), 16)
    inputs = []
    for layer, alive in enumerate(sequence):
        places = torch.stack([torch.searchsorted(b, a) for b, a in zip(before, alive, strict=True)])
        x, before = pick(x, places), alive
        inputs.append(x)
        x = block(student, layer, x)
    prediction = official.norm(student, "norm", x) @ kernel + bias
    target = pick(inputs_and_output(contrastive, images)[1], sequence[-1])
    features = F.smooth_l1_loss(prediction, F.layer_norm(target, target.shape[-1:]))

    losses = []
    whole = relations(reconstructive, LAYER, inputs_and_output(reconstructive, images)[0][LAYER])
    for theirs, ours in zip(whole, relations(student, LAYER, inputs[LAYER]), strict=True):
        # The teacher's softmax of all tokens, cut to the alive ones and renormalised.
        rows = torch.cat([torch.zeros(len(images), 1, dtype=torch.long), 1 + sequence[LAYER]], dim=1)
        cut = torch.stack([t[:, r][:, :, r] for t, r in zip(theirs.softmax(-1), rows, strict=True)])
        cut = cut / cut.sum(-1, keepdim=True)
        losses.append((cut * (cut.log() - ours.log_softmax(-1))).sum(-1).mean())
    return features, sum(losses) / 2


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def states():
    return [encoder_state(width, seed) for seed, width in enumerate((16, 24, 32))]


def fill(objective, states, layouts=(MAE, MAE)):
    """The objective's variables with the weights of the three encoders; the teachers' are in `layouts`."""
    with pytest.warns(WeightsWarning, match="is not in the source"):
        variables = mim_jax.import_weights(objective, states[0], MAE)
    teacher = {}
    for (name, frozen), state, layout in zip(objective.teachers.items(), states[1:], layouts, strict=True):
        source, report = import_with_report(frozen.objective, state, layout)
        assert not report.random
        teacher[name] = frozen.take(source)
    return {**variables, "teacher": teacher}


@pytest.fixture(scope="module")
def objective():
    return mim_jax.create(TINY)


@pytest.fixture(scope="module")
def variables(objective, states):
    return fill(objective, states)


@pytest.fixture(scope="module")
def batch(images):
    return official.as_batch(images)


@pytest.fixture(scope="module")
def masks(objective, variables, batch):
    return jax.jit(objective.masks)(variables, batch, KEY, clock())


@pytest.fixture(scope="module")
def terms(objective, variables, batch, masks):
    return jax.jit(objective.loss)(variables, batch, masks, KEY, clock())[1]["terms"]


def test_masks_keep_the_least_redundant_patches_of_the_contrastive_teacher(masks, states, images):
    for mask, expected in zip(masks, select(states[1], images), strict=True):
        np.testing.assert_array_equal(mask.ids_keep, expected)


def test_sets_are_nested_of_the_configured_sizes_and_need_no_rng(objective, variables, batch, masks):
    assert [mask.num_keep for mask in masks] == list(COUNTS)
    for earlier, later in itertools.pairwise(masks):
        assert (np.asarray(later.mask) >= np.asarray(earlier.mask)).all()
    again = jax.jit(objective.masks)(variables, batch, jax.random.key(9), clock(5))
    jax.tree.map(np.testing.assert_array_equal, again, masks)


def test_both_terms_equal_the_reference(objective, variables, states, images, batch):
    # Sets made by hand, which no network would choose.
    generator = torch.Generator().manual_seed(4)
    order = torch.stack([torch.randperm(16, generator=generator) for _ in range(3)])
    sequence = [order[:, :count].sort(dim=1).values for count in COUNTS]
    masks = tuple(TokenMask.from_order(order.numpy(), count) for count in COUNTS)
    loss, aux = jax.jit(objective.loss)(variables, batch, masks, KEY, clock())
    projection = {name: torch.tensor(np.asarray(x)) for name, x in variables["params"]["projection"].items()}
    qkv = [states[0][f"blocks.{layer}.attn.qkv.weight"].clone().requires_grad_() for layer in range(DEPTH)]
    student = states[0] | {f"blocks.{layer}.attn.qkv.weight": weight for layer, weight in enumerate(qkv)}
    discrimination, diversity = reference([student, *states[1:]], images, sequence, **projection)
    official.assert_equal(aux["terms"]["discrimination"], discrimination)
    official.assert_equal(aux["terms"]["diversity"], diversity)
    expected = 0.75 * discrimination + 2.0 * diversity
    official.assert_equal(loss, expected)
    expected.backward()
    ours = lambda params: objective.loss({**variables, "params": params}, batch, masks, KEY, clock())[0]
    gradients = jax.jit(jax.grad(ours))(variables["params"])["encoder"]["stack"]["blocks"]["attention"]["qkv"]["kernel"]
    official.assert_equal(gradients.reshape(DEPTH, 16, 48), torch.stack([weight.grad.T for weight in qkv]))
    assert aux["latent"].shape == (3, 7, 16) and aux["prediction"].shape == aux["target"].shape == (3, 7, 24)


def test_clip_sees_its_own_normalisation_and_its_last_norm_is_that_of_all_tokens(states, images, batch):
    sizes = dict(hidden_size=24, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=96)
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, patch_size=4, image_size=16))
    with torch.no_grad():
        for seed, parameter in enumerate(clip.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
            parameter.copy_(0.3 * noise + (parameter == 1))  # about 1 where it is a norm's scale
        (mean, std), (own_mean, own_std) = (
            (torch.tensor(values).reshape(3, 1, 1) for values in constants) for constants in (IMAGENET, CLIP)
        )
        pixels = ((images * std + mean - own_mean) / own_std).float()
        found = clip.eval()(pixel_values=pixels, output_hidden_states=True)
        # transformers 5 calls the vision model's parts without its name.
        target = getattr(clip, "vision_model", clip).post_layernorm(found.last_hidden_state)
    objective = mim_jax.create({**TINY, "contrastive": dict(SIZES, name="clip_vit_b16", width=24)})
    variables = fill(objective, [states[0], clip.state_dict(), states[2]], ["transformers/clip", MAE])
    masks = jax.jit(objective.masks)(variables, batch, KEY, clock())
    alive = torch.arange(16).expand(3, 16)
    for depth, (mask, count) in enumerate(zip(masks, COUNTS, strict=True)):
        alive = alive.gather(1, least_redundant(pick(found.hidden_states[depth], alive)[:, 1:], count))
        np.testing.assert_array_equal(mask.ids_keep, alive)
    _, aux = jax.jit(objective.loss)(variables, batch, masks, KEY, clock())
    official.assert_equal(aux["target"], F.layer_norm(pick(target, alive), (24,)))


@pytest.mark.parametrize("source", ["reconstructive", "student"])
def test_patches_may_be_chosen_by_another_network(states, images, batch, source):
    objective = mim_jax.create({**TINY, "redundancy_of": source, "keep_shares": (1.0, 10 / 16, 6 / 16)})
    variables = fill(objective, states)
    chosen = jax.jit(objective.masks)(variables, batch, KEY, clock())
    if source == "reconstructive":
        expected = select(states[2], images, (16, 10, 6))
    else:
        inputs, _ = inputs_and_output(states[0], images)
        alive = least_redundant(inputs[1][:, 1:], 10)
        x = block(states[0], 1, pick(inputs[1], alive))
        expected = [torch.arange(16).expand(3, 16), alive, alive.gather(1, least_redundant(x[:, 1:], 6))]
    for mask, ids in zip(chosen, expected, strict=True):
        np.testing.assert_array_equal(mask.ids_keep, ids)
    loss, aux = jax.jit(objective.loss)(variables, batch, chosen, KEY, clock())
    assert np.isfinite(loss) and set(aux["terms"]) == {"discrimination", "diversity"}


SAME = {
    **TINY,
    **PLAIN,
    "contrastive": dict(TINY["contrastive"], width=16),
    "reconstructive": dict(TINY["reconstructive"], width=16),
}


def test_both_losses_are_zero_when_all_three_are_one_network(states, batch):
    objective = mim_jax.create({**SAME, "normalize_features": False})
    variables = fill(objective, [states[0]] * 3)
    assert objective.masks(variables, batch, KEY, clock()) is None
    assert "projection" not in variables["params"]
    terms = jax.jit(objective.loss)(variables, batch, None, KEY, clock())[1]["terms"]
    assert float(terms["discrimination"]) < 1e-9 and abs(float(terms["diversity"])) < 1e-7


def test_alone_each_is_plain_distillation(variables, states, batch):
    features = mim_jax.create({**TINY, **PLAIN, "alpha": 1.0, "beta": 0.0})
    loss, aux = jax.jit(features.loss)(variables, batch, None, KEY, clock())
    assert list(aux["terms"]) == ["discrimination"]
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    student, target = (inputs_and_output(state, images)[1] for state in states[:2])
    projection = {name: torch.tensor(np.asarray(x)) for name, x in variables["params"]["projection"].items()}
    prediction = student @ projection["kernel"] + projection["bias"]
    official.assert_equal(loss, F.smooth_l1_loss(prediction, F.layer_norm(target, (24,))))

    related = mim_jax.create({**TINY, **PLAIN, "alpha": 0.0, "beta": 1.0})

    def only_diversity(params):
        loss, aux = related.loss({**variables, "params": params}, batch, None, KEY, clock())
        return loss, aux["terms"]

    (loss, terms), gradients = jax.jit(jax.value_and_grad(only_diversity, has_aux=True))(variables["params"])
    assert list(terms) == ["diversity"] and terms["diversity"] == loss
    for unused in (gradients["projection"], gradients["encoder"]["norm"]):
        assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(unused))
    qkv = gradients["encoder"]["stack"]["blocks"]["attention"]["qkv"]["kernel"]
    reached = [bool(np.abs(qkv[layer]).max() > 0) for layer in range(DEPTH)]
    assert reached == [True, True, False]  # the layer of the relations is 1


def test_no_gradient_to_teachers_nor_through_the_selection(objective, variables, batch, masks):
    def loss(variables, masks):
        masks = objective.masks(variables, batch, KEY, clock()) if masks is None else masks
        return objective.loss(variables, batch, masks, KEY, clock())[0]

    through = jax.jit(jax.grad(lambda v: loss(v, None)))(variables)
    given = jax.jit(jax.grad(lambda v: loss(v, masks)))(variables)
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(through["teacher"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(through["params"]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), through["params"], given["params"]
    )


def test_permuted_patches_and_positions_give_permuted_sets_and_the_same_losses(batch):
    names = {name: dict(TINY[name], name="deit_vit_b16") for name in ("contrastive", "reconstructive")}
    objective = mim_jax.create({**TINY, **names, "model": dict(TINY["model"], position="learned")})
    variables = jax.jit(objective.init)(KEY, batch)
    order = np.random.default_rng(2).permutation(16)

    def change_tables(change, tree):
        is_table = lambda path: "table" in jax.tree_util.keystr(path)
        return jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf) if is_table(path) else leaf, tree)

    rng = np.random.default_rng(3)
    variables = change_tables(lambda table: rng.normal(size=table.shape).astype(np.float32), variables)
    permuted = change_tables(lambda table: table[np.r_[0, 1 + order]], variables)
    patches = batch["image"].reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 4, 4, 3)[:, order]
    image = patches.reshape(3, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 16, 3)

    def run(variables, batch):
        masks = objective.masks(variables, batch, KEY, clock())
        return masks, objective.loss(variables, batch, masks, KEY, clock())[1]["terms"]

    (masks, terms), (moved, same) = (
        jax.jit(run)(*given) for given in ((variables, batch), (permuted, {"image": image}))
    )
    for mask, other in zip(masks, moved, strict=True):
        np.testing.assert_array_equal(np.asarray(mask.mask)[:, order], other.mask)
    for name, term in terms.items():
        assert float(same[name]) == pytest.approx(float(term), rel=1e-4)


def test_the_encoder_is_a_plain_vit(objective, variables, batch, states, images):
    plain = mim_jax.create(
        dict(method="mae", image_size=16, model=TINY["model"], decoder=dict(width=8, depth=1, heads=2))
    )
    shapes = jax.eval_shape(plain.init, KEY, batch)["params"]["encoder"]
    assert jax.tree.structure(shapes) == jax.tree.structure(variables["params"]["encoder"])
    features = jax.jit(objective.encode)(variables, batch["image"])
    official.assert_equal(features["tokens"], inputs_and_output(states[0], images)[1][:, 1:])


def test_what_is_not_needed_is_not_run(objective, variables):
    """Blocks in flight: the student's on ever fewer tokens, the contrastive teacher's, and one of the other teacher."""

    def flops(**changes):
        other = mim_jax.create({**TINY, **changes})
        shapes = jax.eval_shape(other.init, KEY, other.batch_spec(2))
        masks = jax.eval_shape(other.masks, shapes, other.batch_spec(2), KEY, clock())

        def loss(variables, batch, masks):
            return other.loss(variables, batch, masks, KEY, clock())[0]

        return count_flops(loss, shapes, other.batch_spec(2), masks)

    def block_flops(tokens, width):
        return 2 * 2 * tokens * (12 * width**2 + 2 * tokens * width)

    def relation_flops(tokens, width):
        return 2 * 2 * tokens * (3 * width**2 + 2 * tokens * width)

    assert objective.reconstructive.encoder.depth == LAYER + 1
    embeddings = sum(2 * 2 * 16 * 48 * width for width in (16, 24))
    student = sum(block_flops(1 + count, 16) for count in COUNTS)
    features = 2 * 2 * (1 + COUNTS[-1]) * 16 * 24
    expected = embeddings + student + 3 * block_flops(17, 24) + features
    assert flops(beta=0.0) == expected
    teacher = 2 * 2 * 16 * 48 * 32 + LAYER * block_flops(17, 32)
    relations = sum(relation_flops(1 + COUNTS[LAYER], width) for width in (16, 32))
    assert flops() == expected + teacher + relations


def test_a_step_runs_the_contrastive_teacher_once(objective, variables):
    batch = objective.batch_spec(2)
    shapes = jax.eval_shape(lambda: variables)
    masks = jax.eval_shape(objective.masks, shapes, batch, KEY, clock())

    def choose(variables, batch):
        return objective.masks(variables, batch, KEY, clock())

    def loss(variables, batch, masks):
        return objective.loss(variables, batch, masks, KEY, clock())[0]

    def both(variables, batch):
        return loss(variables, batch, choose(variables, batch))

    def flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    alone = flops(loss, shapes, batch, masks)
    # What choosing adds to its pass of the teacher is one product with a mean.
    assert flops(both, shapes, batch) - alone < 0.1 * flops(choose, shapes, batch)


def test_the_recipe_has_the_sizes_of_the_sheet():
    objective = mim_jax.create(mim_jax.load_config(str(ROOT / "configs" / "hybrid_distill_vit_b16_in1k.py")))
    shapes = jax.eval_shape(objective.init, KEY, objective.batch_spec())
    assert list(shapes["params"]) == ["encoder"]  # no projection
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 85_647_360
    assert (objective.depths, objective.counts, objective.layers) == ((0, 4, 8), (196, 167, 137), (7,))
    blocks = shapes["teacher"]["reconstructive"]["stack"]["blocks"]
    assert blocks["norm1"]["scale"].shape == (8, 768)
    default = mim_jax.create(dict(method="hybrid_distill"))
    assert (default.depths, default.layers, default.counts) == (objective.depths, objective.layers, objective.counts)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        (dict(feature_loss="l2"), "diversity"),
        (dict(normalize_features=False), "diversity"),
        (dict(teacher_final_norm=False), "diversity"),
        (dict(reverse_divergence=True), "discrimination"),
        (dict(relations=("query_key",)), "discrimination"),
        (dict(relation_layers=(0, 1)), "discrimination"),
    ],
    ids=lambda x: str(x),
)
def test_each_reading_changes_its_own_term(terms, variables, batch, masks, changes, same):
    other = mim_jax.create({**TINY, **changes})
    changed = jax.jit(other.loss)(variables, batch, masks, KEY, clock())[1]["terms"]
    for name, term in terms.items():
        assert (abs(float(changed[name]) / float(term) - 1) < 1e-5) == (name == same)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(alpha=0.0, beta=0.0), "alpha is 0.0 and beta 0.0"),
        (dict(alpha=-1.0), "alpha is -1.0"),
        (dict(keep_shares=(1.0, 0.5)), "has not one share for each of masking_depths"),
        (dict(keep_shares=(0.5, 1.0, 0.5)), "give falling shares"),
        (dict(keep_shares=(1.0, 0.5, 0.01)), "leaves no patch of 16"),
        (dict(masking_depths=(0, 2, 1)), "give rising blocks from 0 to 2"),
        (dict(masking_depths=(0, 1, 3)), "give rising blocks from 0 to 2"),
        (dict(relation_layers=(3,)), "give layers from 0 to 2"),
        (dict(relations=("query",)), r"relations is \('query',\); choose of query_key"),
        (dict(feature_loss="l1"), "feature_loss is 'l1'"),
        (dict(redundancy_of="clip"), "redundancy_of is 'clip'"),
        (dict(model=dict(TINY["model"], position="rope")), "dropped tokens need 'sincos'"),
        (dict(reconstructive=dict(TINY["reconstructive"], heads=2)), "The student's heads is 4, that of the teacher"),
        (dict(contrastive=dict(TINY["contrastive"], depth=2)), "The student's depth is 3, that of the teacher"),
        (dict(contrastive=dict(TINY["contrastive"], class_token=False)), "The student's class_token is True"),
    ],
    ids=lambda x: None if isinstance(x, str) else "-".join(x),
)
def test_bad_values_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        mim_jax.create({**TINY, **change})


def test_two_masking_depths_may_be_one():
    """As in a student of two blocks."""
    small = dict(SIZES, depth=2)
    changes = {name: dict(TINY[name], **small) for name in ("model", "contrastive", "reconstructive")}
    objective = mim_jax.create({**TINY, **changes})
    assert (objective.depths, objective.layers) == ((0, 0, 1), (0,))
    batch = synthetic_batch(objective, 2)

    @jax.jit
    def latent():
        variables = objective.init(KEY, batch)
        masks = objective.masks(variables, batch, KEY, clock())
        return objective.loss(variables, batch, masks, None, clock())[1]["latent"]

    assert latent().shape == (2, 7, 16) and np.isfinite(latent()).all()
