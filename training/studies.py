"""What reproduce.py trains: the two studies' experiments, and recipes for four budgets; with their figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Experiment:
    """One recipe, and what the study found with it.

    what: network and settings in words.
    figure: as the study states it; "" where the experiment is not the study's.
    low, high: the figure as a number, or the range it gives.
    on_test: the figure is of the test set, else of the validation set.
    """

    name: str
    what: str
    figure: str = ""
    low: float = 0.0
    high: float = 0.0
    on_test: bool = False


@dataclass(frozen=True)
class Comparison:
    """Experiments whose curves are laid over each other; those of a group have one colour."""

    title: str
    groups: tuple[tuple[str, ...], ...]

    @property
    def experiments(self) -> tuple[str, ...]:
        return tuple(name for group in self.groups for name in group)


@dataclass(frozen=True)
class Finding:
    """What a study found: in each pair the first side, an experiment or a number, has the higher `quantity`.

    quantity: a key of QUANTITIES in training/report.py.
    """

    text: str
    pairs: tuple[tuple[str | float, str | float], ...]
    quantity: str = "validation accuracy"


@dataclass(frozen=True)
class Study:
    """Experiments on one data set, and what is said of them.

    twins: pairs that train one network from the same weights alike; the report says whether the bits agree.
    """

    title: str
    dataset: str
    experiments: tuple[Experiment, ...]
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    twins: tuple[tuple[str, str], ...] = ()

    @property
    def validates(self) -> bool:
        """Whether it has more than figures of the test set, so that its runs hold validation images out."""
        return not all(experiment.on_test for experiment in self.experiments)


def _compared(title: str, *experiments: str) -> Comparison:
    return Comparison(title, tuple((name,) for name in experiments))


def _exactly(name: str, what: str, value: float, on_test: bool = False) -> Experiment:
    return Experiment(name, what, f"{value}", value, value, on_test)


def _about(name: str, what: str, value: float) -> Experiment:
    return Experiment(name, what, f"about {value:.2f}", value, value)


CIFAR10_STUDY = Study(
    title="CIFAR-10 study",
    dataset="cifar10",
    experiments=(
        _exactly("exp1", "torchvision's ResNet-18, lr 0.01", 0.827),
        Experiment("exp1-pytorch", "exp1 with PyTorch's initial weights"),
        _exactly("exp2", "own ResNet-18 (7x7 stem, PyTorch's initial weights), lr 0.01", 0.846),
        Experiment("exp2-kaiming", "exp2 with torchvision's initial weights"),
        _exactly("exp3", "improved (3x3 stem), lr 0.01", 0.919),
        Experiment("exp3-pool", "exp3 with the max-pooling of the study's printed code"),
        _exactly("exp4", "improved, lr 0.1", 0.903),
        _exactly("exp5", "improved, lr 0.001", 0.897),
        _exactly("exp6", "improved, lr 0.01, MultiStepLR", 0.923),
        _exactly("exp7", "improved, lr 0.1, MultiStepLR", 0.922),
        _exactly("exp8", "improved, lr 0.001, MultiStepLR", 0.893),
        _exactly("exp9", "exp1 from ImageNet weights", 0.857),
    ),
    comparisons=(
        _compared("Networks", "exp1", "exp2", "exp3"),
        Comparison("Network and initial weights", (("exp1", "exp1-pytorch"), ("exp2", "exp2-kaiming"))),
        _compared("Stem with and without max-pooling", "exp3", "exp3-pool"),
        Comparison("Learning rates", (("exp3", "exp6"), ("exp4", "exp7"), ("exp5", "exp8"))),
        _compared("ImageNet weights", "exp1", "exp9"),
        _compared("ImageNet weights or a better network", "exp3", "exp9"),
    ),
    findings=(
        Finding("Its own ResNet-18 beats torchvision's, the networks being equal.", (("exp2", "exp1"),)),
        Finding(
            "(Ours, to explain that.) The initial weights make the difference: with PyTorch's either network "
            "beats itself with torchvision's.",
            (("exp2", "exp2-kaiming"), ("exp1-pytorch", "exp1")),
        ),
        Finding("The 3x3 stem beats the 7x7 stem.", (("exp3", "exp1"), ("exp3", "exp2"))),
        Finding("It is the first to pass 0.9.", (("exp3", 0.9), (0.9, "exp1"), (0.9, "exp2"))),
        Finding("Without decay 0.01 is the best learning rate.", (("exp3", "exp4"), ("exp3", "exp5"))),
        Finding(
            "Decay helps at each learning rate. (Its own figures say otherwise at 0.001.)",
            (("exp6", "exp3"), ("exp7", "exp4"), ("exp8", "exp5")),
        ),
        Finding(
            "Decay makes training converge faster.",
            (("exp6", "exp3"), ("exp7", "exp4"), ("exp8", "exp5")),
            "mean validation accuracy over all epochs",
        ),
        Finding(
            "The best of all is 0.01 with decay.",
            (("exp6", "exp3"), ("exp6", "exp4"), ("exp6", "exp5"), ("exp6", "exp7"), ("exp6", "exp8")),
        ),
        Finding("ImageNet weights give a better start.", (("exp9", "exp1"),), "accuracy after the first epoch"),
        Finding("They start above the better stem, too.", (("exp9", "exp3"),), "accuracy after the first epoch"),
        Finding(
            "ImageNet weights make training converge faster.",
            (("exp9", "exp1"),),
            "mean validation accuracy over all epochs",
        ),
        Finding("ImageNet weights give a better end.", (("exp9", "exp1"),)),
        Finding("The better stem gives more than ImageNet weights.", (("exp3", "exp9"),)),
    ),
    notes=(
        "Accuracies are exact over samples, where the study averages those of batches. Best weights are those of "
        "the best validation epoch, where the study keeps them above 0.7 only.",
        "20 % of each class are held out. How the study's split came out is unknown: its printed code takes "
        "indices from a list that shrinks under them, and cannot run.",
        "Momentum, weight decay and batch size are not stated: 0.9, 5e-4 and 128 here. Pixels are normalised by "
        "their deviation, where the study divides by the mean of the images' deviations.",
        "Micro F1 equals accuracy on the same images, as the study notes: each has one label and one prediction.",
    ),
    twins=(("exp1", "exp2-kaiming"),),
)

CIFAR100_STUDY = Study(
    title="CIFAR-100 study",
    dataset="cifar100",
    experiments=(
        _about("v1", "ResNet-18, lr 0.1, no augmentation", 0.20),
        _about("vgg16", "VGG16, as v1", 0.11),
        _about("v2", "v1 with augmentation", 0.37),
        _about("v3", "v2, lr 0.001", 0.49),
        _about("v4", "v2, lr 0.1, fewer epochs", 0.50),
        Experiment("resnet34", "ResNet-34, as v4", "0.56 to 0.65", 0.56, 0.65),
        _exactly("v5", "ResNet-18, lr 0.001, Keras' decay 0.004, L2 1e-4", 0.6221, on_test=True),
    ),
    comparisons=(_compared("All versions", "v1", "vgg16", "v2", "v3", "v4", "resnet34", "v5"),),
    findings=(
        Finding("VGG16 does worse than ResNet-18.", (("v1", "vgg16"),)),
        Finding("Augmentation helps.", (("v2", "v1"),)),
        Finding(
            "Without augmentation training and validation come far apart.",
            (("v1", "v2"),),
            "training less validation accuracy, last epoch",
        ),
        Finding("The smaller learning rate helps.", (("v3", "v2"),)),
        Finding("v4 beats v2 in a quarter of its epochs.", (("v4", "v2"),)),
        Finding(
            "v3, of the smaller learning rate, is unsteadier than v4.",
            (("v3", "v4"),),
            "deviation of the validation accuracy over the last fifth of the epochs",
        ),
        Finding("ResNet-34 beats ResNet-18 trained alike.", (("resnet34", "v4"),)),
        Finding(
            "ResNet-34 is the unsteadier of the two best.",
            (("resnet34", "v5"),),
            "deviation of the validation accuracy over the last fifth of the epochs",
        ),
        Finding(
            "Decay and L2 bring training and validation closer together.",
            (("v4", "v5"),),
            "training less validation accuracy, last epoch",
        ),
        Finding("Decay and L2 take ResNet-18 beyond 0.6.", (("v5", 0.6),)),
        Finding(
            "Decay and L2 give the best ResNet-18.",
            (("v5", "v1"), ("v5", "v2"), ("v5", "v3"), ("v5", "v4")),
        ),
    ),
    notes=(
        "Held out are the last 10 % of each class, so that folders of classes, which are in no mixed order, can "
        "be used too; the study holds out the last 10 % of the archive, which is mixed.",
        "Validation figures here are the best epoch's, and test figures of its weights; the study reads its "
        "curves, and tests the last epoch's.",
        "Losses here are without the L2 term, which the study's include. Shifts are by whole pixels, where Keras "
        "interpolates. The optimizer and batch size of all but the last version are not stated: Adam and 64 here; "
        "Adam's epsilon is PyTorch's 1e-8, where Keras has 1e-7.",
        "v4 is the beginning of v2, to the bit with one seed: its best epoch cannot beat v2's. In the study they "
        "differ, as it changed its augmentation from version to version and does not say how.",
        "v5 has the learning rate of the study's code, 0.001, where its text has 0.01. VGG16, which the study "
        "does not print, is torchvision's, with its dropout and initial weights.",
    ),
)


def _budgets(name: str, dataset: str, prefix: str, goals: tuple[float, float, float, float, float]) -> Study:
    """The recipes of one data set: ResNet-18 in 30, 100, 15 and 200 epochs, ResNet-34 in 200; and their goals.

    They are trained in this order, the most wanted first.
    """
    budgets = [(epochs, f"ResNet-18, {epochs} epochs") for epochs in ("30", "100", "15", "200")]
    budgets.append(("r34", "ResNet-34, 200 epochs"))
    names = [f"{prefix}-{budget}" for budget, _ in budgets]
    return Study(
        title=f"{name} at four budgets",
        dataset=dataset,
        experiments=tuple(
            _exactly(experiment, what, goal, on_test=True)
            for experiment, (_, what), goal in zip(names, budgets, goals, strict=True)
        ),
        comparisons=(_compared("All budgets", *names),),
        findings=(),
        notes=(
            "Figures are goals: means of 3 seeds on the test set. Trained on all training images, with the last "
            "epoch's weights; nothing is validated. The curves are of training: of augmented images, and where "
            "these are mixed the accuracy counts their own label alone.",
        ),
    )


STUDIES = {
    "cifar10-study": CIFAR10_STUDY,
    "cifar100-study": CIFAR100_STUDY,
    "cifar10-budgets": _budgets("CIFAR-10", "cifar10", "c10", (0.947, 0.962, 0.935, 0.973, 0.975)),
    "cifar100-budgets": _budgets("CIFAR-100", "cifar100", "c100", (0.755, 0.795, 0.72, 0.825, 0.835)),
}
GROUPS = {
    **{name: (name,) for name in STUDIES},
    "all": ("cifar10-study", "cifar100-study"),
    "recipes": ("cifar10-budgets", "cifar100-budgets"),
}
"""What reproduce.py can be asked for, and the studies it takes then."""
