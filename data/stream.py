"""What training sees: the global batches of each epoch, augmented; and a digest of them.

    python -m data.stream --recipe recipes/cifar10.yaml --epochs 2

prints one SHA-256 for each epoch, of the ids, augmented pixels and labels of all its steps. It takes the flags
of train.py, trains nothing, and is the same for both loaders and any number of processes, workers and
micro-batches: two machines that print the same feed their networks the same.
"""

import hashlib
import struct
from collections.abc import Callable, Generator
from contextlib import closing

import torch
from torch import Tensor

from data.augment import BatchTransform
from data.errors import InputError
from data.loaders import Batch, Loader
from data.mixing import Mixing, draw_mixture, mix
from data.sampling import epoch_batches, micro_batches, partner_batches


class Stream:
    """This process' share of the batches of any epoch: a function of (ids, seed, epoch, step) alone.

    Args:
        loader: reads the images.
        transform: augments them.
        ids: int64 (n,), of the training images.
        batch_size: images of a step over all processes.
        seed: of the order.
        accumulation: micro-batches of a step in each process.
        rank, world_size: of this process.
        mixing: of pairs out of each global batch, whichever process has them.
        steps_at_once: read and augmented together, which does not change them: a GPU is then asked for the same
            work in fewer launches.

    Raises:
        InputError: batch size, processes, accumulation and images do not fit together.
    """

    def __init__(
        self,
        loader: Loader,
        transform: BatchTransform,
        ids: Tensor,
        batch_size: int,
        seed: int,
        accumulation: int = 1,
        rank: int = 0,
        world_size: int = 1,
        mixing: Mixing | None = None,
        steps_at_once: int = 1,
    ):
        shares = world_size * accumulation
        if batch_size % shares:
            raise InputError(
                f"--batch-size {batch_size} does not divide by {world_size} processes x --accumulation "
                f"{accumulation}; choose a multiple of {shares}"
            )
        if batch_size == shares:
            raise InputError(
                f"--batch-size {batch_size} leaves one image at a time, too few for BatchNorm; choose a multiple "
                f"of {shares} from {2 * shares} on"
            )
        if batch_size > len(ids):
            raise InputError(
                f"--batch-size {batch_size} is more than the {len(ids)} training images; choose at most that many"
            )
        self.loader, self.transform, self.ids = loader, transform, ids
        self.batch_size, self.seed, self.accumulation = batch_size, seed, accumulation
        self.rank, self.world_size = rank, world_size
        self.mixing = mixing or Mixing()
        self.steps_at_once = steps_at_once
        self.steps_per_epoch = len(ids) // batch_size

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[list[Batch]]:
        """The micro-batches of each step of an epoch from `first_step` on; images are floats, augmented."""
        batches = epoch_batches(self.ids, self.batch_size, self.seed, epoch)[first_step:]
        share = self._share(batches)
        if self.mixing:  # a micro-batch and its partners are read and augmented as one batch
            share = torch.cat([share, self._share(partner_batches(batches, self.seed, epoch))], dim=2)
        groups = share.split(self.steps_at_once) if len(share) else ()
        with closing(self.loader.read([group.flatten() for group in groups])) as reader:
            parts = (part for batch in reader for part in self._augmented(batch, epoch).cut(share.shape[2]))
            for step in range(first_step, first_step + len(share)):
                yield [self._mixed(next(parts), epoch, step) for _ in range(self.accumulation)]

    def _share(self, batches: Tensor) -> Tensor:
        return micro_batches(batches, self.rank, self.world_size, self.accumulation)

    def _augmented(self, batch: Batch, epoch: int) -> Batch:
        return batch._replace(images=self.transform.augment(batch.images, batch.ids, epoch))

    def _mixed(self, batch: Batch, epoch: int, step: int) -> Batch:
        if not self.mixing:
            return batch
        height, width = batch.images.shape[2:]
        return mix(batch, draw_mixture(self.mixing, (height, width), self.seed, epoch, step))


def epoch_digest(stream: Stream, epoch: int, gather: Callable[[Tensor], Tensor]) -> str:
    """SHA-256 of (ids, pixels, labels) of each global batch of an epoch, in order.

    Where images are mixed, the partners' labels and lam (float32) follow.

    Args:
        gather: concatenates a tensor of every process, by rank; to be called by all of them.
    """
    digest = hashlib.sha256()
    for step in stream.epoch(epoch):
        # a global batch is cut into micro-batches first, and each of them over the processes
        names = ("ids", "images", "labels", *(["partner_labels"] if stream.mixing else []))
        for name in names:
            whole = torch.cat([gather(getattr(batch, name).contiguous()) for batch in step])
            digest.update(whole.cpu().numpy().tobytes())
        if stream.mixing:
            digest.update(struct.pack("<f", step[0].lam))
    return digest.hexdigest()


def main() -> None:
    import sys
    from dataclasses import replace

    from training.cli import one_line_errors
    from training.config import parse_config
    from training.hardware import make_accelerator
    from training.parts import make_stream, open_data
    from training.peers import lost_peers_told

    with one_line_errors(quiet_ranks=True):
        # The pixels in fp32: the precision is the hardware's choice, and should not tell two machines apart.
        config = replace(parse_config(sys.argv[1:]), precision="no")
        accelerator = make_accelerator(config)
        prepared, loader, _ = open_data(config, accelerator)
        stream, _ = make_stream(config, accelerator, prepared, loader)
    with one_line_errors(), lost_peers_told():
        for epoch in range(config.epochs):
            accelerator.print(f"epoch {epoch + 1}  {epoch_digest(stream, epoch, accelerator.gather)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
