"""What is known of each data set in advance: the only home of class names, means and deviations."""

from dataclasses import dataclass

IMAGE_SIZE = 32
"""Height and width of every image, in pixels."""


@dataclass(frozen=True)
class DatasetSpec:
    """Names and pixel statistics of a data set.

    `mean` and `std` are per channel (RGB), over all pixels of all training images scaled to 0..1. The
    deviation is that of the pixels; the often copied (0.2023, 0.1994, 0.2010) for CIFAR-10 is the mean of the
    deviations within each image. `coarse_of` gives the index into `coarse_classes` of each class.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    coarse_classes: tuple[str, ...] = ()
    coarse_of: tuple[int, ...] = ()


_CIFAR100_BY_COARSE = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_COARSE_OF = {fine: index for index, names in enumerate(_CIFAR100_BY_COARSE.values()) for fine in names.split()}

CIFAR10 = DatasetSpec(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
)

CIFAR100 = DatasetSpec(
    name="cifar100",
    classes=tuple(sorted(_COARSE_OF)),
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    coarse_classes=tuple(_CIFAR100_BY_COARSE),
    coarse_of=tuple(_COARSE_OF[name] for name in sorted(_COARSE_OF)),
)

SPECS = {spec.name: spec for spec in (CIFAR10, CIFAR100)}
