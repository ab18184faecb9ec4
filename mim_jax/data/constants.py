"""Per-channel mean and standard deviation of well-known data sets, of pixel values scaled to [0, 1]."""

from __future__ import annotations

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# Keyed by the TFDS name without config and version. What is not listed takes ImageNet's values.
KNOWN = {
    "imagenet2012": IMAGENET,
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "kmnist": ((0.1918,), (0.3483,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn_cropped": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
}
