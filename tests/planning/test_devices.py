import pytest

from mim_jax.errors import ConfigError
from mim_jax.planning.devices import DEVICES, find_device


def test_rings_within_a_node_use_its_links():
    assert find_device("h100").ring_bandwidth(range(8, 16)) == 450e9


def test_rings_between_nodes_share_the_adapters_of_their_members():
    h100 = find_device("h100")
    assert h100.ring_bandwidth(range(0, 64, 8)) == 50e9  # one device a node
    assert h100.ring_bandwidth(range(0, 64, 4)) == 100e9
    assert h100.ring_bandwidth(range(64)) == 400e9


def test_networks_without_a_public_figure_are_not_guessed():
    with pytest.raises(ConfigError, match="beyond 256 chips"):
        find_device("tpu-v6e").ring_bandwidth(range(512))


def test_unknown_devices_are_refused_by_name():
    with pytest.raises(ConfigError, match="'tpu-v9'.*tpu-v5e"):
        find_device("tpu-v9")


@pytest.mark.parametrize("name", DEVICES)
def test_figures_have_the_magnitude_of_their_units(name):
    device = DEVICES[name]
    assert 1e14 < device.peak_flops < 1e16
    assert 1e10 < device.memory_bytes < 1e12 < 2 * device.memory_bandwidth < 2e13
    assert (device.outer_bandwidth or 0) < device.link_bandwidth < device.memory_bandwidth
