"""Images for training and evaluation. TensorFlow is imported only when it is needed."""

from mim_jax.data.batches import eval_batches as eval_batches
from mim_jax.data.batches import train_batches as train_batches
from mim_jax.data.config import default_config as default_config
from mim_jax.data.info import DataInfo as DataInfo
from mim_jax.data.info import data_info as data_info
from mim_jax.data.prefetch import prefetch as prefetch
from mim_jax.data.stored_features import open_features as open_features
from mim_jax.data.views import check_views as check_views
from mim_jax.normalization import denormalize as denormalize
from mim_jax.normalization import normalization as normalization
