"""`SwinForMaskedImageModeling` of transformers: SimMIM on a Swin Transformer.

In training it drops paths around attention alone; here, as in the official code, around the MLP too.
"""

from __future__ import annotations

from mim_jax.interop.blocks import TRANSFORMERS_FREE, WRAPPERS, pixel_shuffle_head
from mim_jax.interop.layout import Context, Layout
from mim_jax.interop.swin_blocks import BUFFERS, output_patch, transformers_swin

# transformers 5 renamed modules; files on the hub, and those it still writes, have the names of 4.
_RENAMES = (
    *WRAPPERS,
    (r"\.attention\.q_proj\.", ".attention.self.query."),
    (r"\.attention\.k_proj\.", ".attention.self.key."),
    (r"\.attention\.v_proj\.", ".attention.self.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.attention\.relative_position_bias\.", ".attention.self."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def layout(context: Context) -> Layout:
    """Rules for the encoder with its mask token, and for the pixel head."""
    context.require_backbone("swin")
    config, model = context.config, context.config.model
    head, ignored = pixel_shuffle_head("decoder.0", context, output_patch(context))
    stride = output_patch(context)
    description = dict(
        model_type="swin",
        architectures=["SwinForMaskedImageModeling"],
        image_size=config.image_size if isinstance(config.image_size, int) else list(config.image_size),
        patch_size=model.patch_size if isinstance(model.patch_size, int) else list(model.patch_size),
        num_channels=config.channels,
        embed_dim=model.width,
        depths=list(model.depths),
        num_heads=list(model.heads),
        window_size=model.window,
        mlp_ratio=model.mlp_ratio,
        qkv_bias=True,
        hidden_act="gelu",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        drop_path_rate=model.drop_path,
        layer_norm_eps=1e-5,
        use_absolute_embeddings=False,
        encoder_stride=stride["h"],
    )
    return Layout(
        rules=(*transformers_swin("swin.", context.encoder, context), *head),
        ignored=(*ignored, BUFFERS),
        renames=_RENAMES,
        config=description,
        free_config=(*TRANSFORMERS_FREE, "drop_path_rate", "window_size"),
    )
