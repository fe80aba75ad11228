r"""How many bytes a step of the loss puts on the wire, by formula, and what follows for clusters never measured.

W ranks with n pairs of width d each, both directions, floats of b bytes. Of all ranks together:

- gather: x and y go to everybody and their gradients come back, :math:`4 W (W-1) n d b` where the back end has a
  reduce-scatter, :math:`6 W (W-1) n d b` where it sums everything and cuts (gloo);
- ring: y goes round twice, its gradient once, and the column sums with them,
  :math:`[(3 W^2 - 2 W) n d + (2 W^2 - W) n] b`.
"""

from dataclasses import dataclass

__all__ = ["CLUSTER", "Cluster", "gather_bytes", "projected", "ring_bytes"]


def gather_bytes(world: int, pairs: int, width: int, *, itemsize: int = 4, scatters: bool = True) -> int:
    """Bytes of a step by gathering, of all ranks; `scatters`: whether the back end has a reduce-scatter."""
    return (4 if scatters else 6) * world * (world - 1) * pairs * width * itemsize


def ring_bytes(world: int, pairs: int, width: int, *, itemsize: int = 4) -> int:
    """Bytes of a step by the ring, of all ranks; nothing for one."""
    if world == 1:
        return 0
    keys, sums = 3 * world**2 - 2 * world, 2 * world**2 - world
    return (keys * width + sums) * pairs * itemsize


@dataclass(frozen=True)
class Cluster:
    """What is published of a machine, and what is assumed of its use.

    Arguments:
        link: bytes a second that a GPU sends beyond its machine.
        within: bytes a second that it sends within.
        gpus: of a machine.
        flops: of products, a second.
        link_used: share of a link that is reached.
        flops_used: share of the products that is reached.
        latency: seconds of a transfer to a neighbour.
    """

    link: float
    within: float
    gpus: int
    flops: float
    link_used: float
    flops_used: float
    latency: float


# Published of NVIDIA's DGX H100: a ConnectX-7 of 400 Gb/s for each of 8 GPUs, NVLink of 900 GB/s in both directions
# together, 495 TFLOP/s of dense TF32. Assumed: the shares of a link and of the products that are reached, the latency.
CLUSTER = Cluster(link=50e9, within=450e9, gpus=8, flops=495e12, link_used=0.8, flops_used=0.4, latency=20e-6)


@dataclass(frozen=True)
class Projection:
    """A step of one GPU that was not measured.

    Arguments:
        gigabytes: that it sends.
        wire_ms: how long that takes, if nothing overlaps.
        products_ms: how long its matrix products take.
        keys_gb: memory of what it holds of other ranks, gradients included.
    """

    gigabytes: float
    wire_ms: float
    products_ms: float
    keys_gb: float


def projected(world: int, pairs: int, width: int, *, ring: bool, cluster: Cluster = CLUSTER) -> Projection:
    """What a step would take: bytes by formula over the slowest link, products over the peak that is reached.

    Gathering takes three products of n x N x d for each direction; the ring has one set of scores for both, forms
    them twice, and takes four.
    """
    sent = (ring_bytes if ring else gather_bytes)(world, pairs, width) / world
    link = cluster.link if world > cluster.gpus else cluster.within
    transfers = 3 * world if ring else 4
    products = (4 if ring else 6) * 2 * pairs * (world * pairs) * width
    held = 4 * pairs * width if ring else 4 * world * pairs * width  # keys and gradients; x and y
    return Projection(
        gigabytes=sent / 1e9,
        wire_ms=1e3 * (sent / (cluster.link_used * link) + transfers * cluster.latency),
        products_ms=1e3 * products / (cluster.flops_used * cluster.flops),
        keys_gb=held * 4 / 1e9,
    )
