"""The methods that are compared, by name."""

import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable

import keras
import numpy as np

import keras_tracin as kt
from benchmarks._quality_settings import FEW_STEPS, Arrays, Setting
from benchmarks._quality_training import Trained, recorded

ENSEMBLE = 5  # trainings

Scores = kt.Attribution


class Problem:
    """A network, its data and its recorded trainings.

    Args:
        setting: the network and its training.
        train: training examples.
        test: queries.
        folder: folder of recorded trainings.
    """

    def __init__(
        self,
        setting: Setting,
        train: Arrays,
        test: Arrays,
        folder: pathlib.Path,
    ):
        self.setting, self.train, self.test = setting, train, test
        self.folder = folder
        self._trained: dict[int, Trained] = {}

    def trained(self, seed: int = 0) -> Trained:
        """One of the trainings on all examples."""
        if seed not in self._trained:
            self._trained[seed] = recorded(
                self.setting, self.train, seed, self.folder
            )
        return self._trained[seed]


Method = Callable[[Problem, int], Scores]


def evenly(run: kt.TrainingRun, count: int) -> kt.TrainingRun:
    """Checkpoints at equal distances, including the last."""
    places = np.linspace(-1, len(run) - 1, count + 1).round()[1:]
    return run.select(places.astype(int).tolist())


def tracin(choose: Callable = lambda run: run, **options) -> Method:
    """TracIn at selected checkpoints."""

    def scores(problem: Problem, seed: int) -> Scores:
        model, run = _opened(problem, seed)
        method = kt.TracIn(model, problem.train, choose(run), **options)
        return method.influence(problem.test, verbose=0)

    return scores


def last_layer(problem: Problem, seed: int) -> Scores:
    """TracIn of ten checkpoints, in the last layer alone."""
    name = problem.trained(seed).model.layers[-1].name
    return tracin(ten, layers=[name])(problem, seed)


def cosine(problem: Problem, seed: int) -> Scores:
    """Cosines of the gradients at the end of training."""
    model, run = _opened(problem, seed)
    attribution = tracin(last)(problem, seed)
    own = [
        kt.TracIn(model, data, run[-1:]).self_influence(verbose=0).scores
        for data in (problem.test, problem.train)
    ]
    lengths = np.sqrt(np.maximum(np.outer(*own), 1e-30))
    return dataclasses.replace(attribution, scores=attribution.scores / lengths)


def influence(
    damping: float | str | Callable[[], float],
    solver=None,
    curvature: str | None = "gauss_newton",
    choose: Callable = lambda run: run[-1:],
) -> Method:
    """Influence functions at the end of training, or the mean at several.

    Args:
        damping: damping λ or "auto", or a function that chooses it.
        solver: `solver` of `InfluenceFunctions`.
        curvature: `curvature` of `InfluenceFunctions`.
        choose: selects the checkpoints.
    """

    def scores(problem: Problem, seed: int) -> Scores:
        trained = problem.trained(seed)
        method = kt.InfluenceFunctions(
            trained.model,
            problem.train,
            run=choose(trained.run),
            damping=damping() if callable(damping) else damping,
            solver=solver,
            curvature=curvature,
        )
        return method.influence(problem.test, verbose=0)

    return scores


def source(choose: Callable, **options) -> Method:
    """SOURCE over selected checkpoints."""

    def scores(problem: Problem, seed: int) -> Scores:
        trained = problem.trained(seed)
        method = kt.SOURCE(
            trained.model, problem.train, choose(trained.run), **options
        )
        return method.influence(problem.test, verbose=0)

    return scores


def unrolled(problem: Problem, seed: int) -> Scores:
    """Unrolled influence.

    It uses a separate training, whose batches are recorded.
    """
    setting = problem.setting
    model = setting.compiled(seed)
    directory = problem.folder / f"watched-{seed}"
    kt.record_training(
        model,
        problem.train,
        directory,
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        seed=seed,
    )
    method = kt.UnrolledInfluence(model, problem.train, directory)
    return method.influence(problem.test, verbose=0)


def representer(l2: float, method: str) -> Method:
    """Representer points; for a regression, signed towards the label."""

    def scores(problem: Problem, seed: int) -> Scores:
        model = problem.trained(seed).model
        points = kt.RepresenterPoints(
            model, problem.train, l2=l2, method=method, verbose=0
        )
        scores = points.influence(problem.test, verbose=0)
        if isinstance(problem.setting.loss, keras.losses.MeanSquaredError):
            # Positive raises the output, which helps if it is too low.
            missing = problem.test[1] - model.predict(
                problem.test[0], verbose=0
            )
            return dataclasses.replace(scores, scores=scores.scores * missing)
        return scores

    return scores


def trak(
    choose: Callable,
    damping: float = 1.0,
    dim: int = 2048,
    trainings: int = 1,
) -> Method:
    """TRAK at selected checkpoints of one or several trainings."""

    def scores(problem: Problem, seed: int) -> Scores:
        runs = [
            choose(problem.trained(seed + more).run)
            for more in range(trainings)
        ]
        method = kt.TRAK(
            problem.trained(seed).model,
            problem.train,
            runs,
            projection=kt.TensorSketch(dim),
            damping=damping,
        )
        return method.influence(problem.test, verbose=0)

    return scores


def masks(choose: Callable, num_masks: int, dim: int = 2048) -> Method:
    """TRAK under masks of Dropout, each with a projection of its own."""

    def scores(problem: Problem, seed: int) -> Scores:
        trained = problem.trained(seed)
        run = choose(trained.run)

        def member(network: keras.Model, number: int) -> kt.TRAK:
            projection = kt.TensorSketch(dim, seed=number)
            return kt.TRAK(network, problem.train, run, projection=projection)

        ensemble = kt.DropoutEnsemble(member, trained.model, num_masks)
        return ensemble.influence(problem.test, verbose=0)

    return scores


def similarity(problem: Problem, seed: int, by_label: bool = False) -> Scores:
    """Cosine similarities of the last layer's inputs, as a baseline.

    With `by_label`, they are negative for examples of another class.
    """
    model = problem.trained(seed).model
    sides = []
    reader = keras.Model(model.inputs, model.layers[-1].input)
    for x, _ in (problem.test, problem.train):
        features = reader.predict(x, verbose=0).reshape(len(x), -1)
        sides.append(features / np.linalg.norm(features, axis=1)[:, None])
    scores = sides[0] @ sides[1].T
    if by_label:
        labels = problem.test[1], problem.train[1]
        scores = np.where(np.equal.outer(*labels), scores, -scores)
    m, n = scores.shape
    return Scores(scores, np.arange(m), np.arange(n))


def several(method: Method) -> Method:
    """Mean of scores over trainings."""
    return lambda problem, seed: Scores.mean(
        [method(problem, seed + more) for more in range(ENSEMBLE)]
    )


def mean_of(*methods: Method) -> Method:
    """Mean of methods whose scores of a query are brought to one size."""

    def scores(problem: Problem, seed: int) -> Scores:
        parts = [method(problem, seed) for method in methods]
        scaled = [
            dataclasses.replace(
                part, scores=part.scores / part.scores.std(1, keepdims=True)
            )
            for part in parts
        ]
        return Scores.mean(scaled)

    return scores


def last(run: kt.TrainingRun) -> kt.TrainingRun:
    """The last checkpoint."""
    return run[-1:]


def five(run: kt.TrainingRun) -> kt.TrainingRun:
    """Five checkpoints, evenly spaced."""
    return evenly(run, 5)


def six(run: kt.TrainingRun) -> kt.TrainingRun:
    """Six checkpoints, evenly spaced: two for each of three segments."""
    return evenly(run, 6)


def ten(run: kt.TrainingRun) -> kt.TrainingRun:
    """Ten checkpoints, evenly spaced."""
    return evenly(run, 10)


def fifteen(run: kt.TrainingRun) -> kt.TrainingRun:
    """Fifteen checkpoints, evenly spaced, or all of fewer."""
    return evenly(run, min(15, len(run)))


CHECKPOINTS = {"last": last, "five": five}


def _opened(problem: Problem, seed: int):
    warnings.filterwarnings("ignore", "TracIn was given the final")
    trained = problem.trained(seed)
    return trained.model, trained.run


def described(solver) -> str:
    """A solver's class and its options."""
    first, *others = dataclasses.fields(solver)
    others = [f for f in others if getattr(solver, f.name) != f.default]
    fields = (f"{f.name}={getattr(solver, f.name)}" for f in [first, *others])
    return f"{type(solver).__name__}({', '.join(fields)})"


def methods(
    setting: Setting, damping: Callable[[str, str], float]
) -> dict[str, Method]:
    """All methods of a setting, in the order of the table's rows.

    Args:
        setting: the network and its training.
        damping: function that chooses λ for a curvature and a name of
            `CHECKPOINTS`.
    """

    def find(curvature: str, checkpoints: str) -> Callable[[], float]:
        return lambda: damping(curvature, checkpoints)

    ekfac = influence(find("ekfac", "last"), curvature="ekfac")
    ekfac_of_five = influence(
        find("ekfac", "five"), curvature="ekfac", choose=five
    )
    auto = influence("auto", curvature="ekfac")
    auto_of_five = influence("auto", curvature="ekfac", choose=five)
    auto_of_many = influence("auto", curvature="ekfac", choose=fifteen)
    trak_of_all = trak(lambda run: run)
    relative = kt.EKFAC(damping="relative")
    methods_by_name: dict[str, Method] = {
        "TracIn, 1 checkpoint": tracin(last),
        "TracIn, 5": tracin(five),
        "TracIn, 10": tracin(ten),
        "TracIn, 10 selected": tracin(
            lambda run: kt.select_checkpoints(run, 10, verbose=0)
        ),
        "TracIn, 10, TensorSketch(1024)": tracin(
            ten, projection=kt.TensorSketch(1024)
        ),
    }
    if isinstance(setting.optimizer(), keras.optimizers.Adam):
        methods_by_name["TracIn, 10, optimizer-aware"] = tracin(
            ten, optimizer_aware=True
        )
    methods_by_name |= {
        "TracIn, 10, last layer": last_layer,
        "gradient cosine": cosine,
    }
    if len(setting.build().layers) == 1:
        del methods_by_name["TracIn, 10, last layer"]  # it is the only one
    for solver in setting.solvers:
        name = f"influence, {described(solver)}"
        methods_by_name[name] = influence(find("gauss_newton", "last"), solver)
    methods_by_name |= {
        "influence, EK-FAC": ekfac,
        "influence, EK-FAC, λ auto": auto,
        "influence, EK-FAC, λ relative": influence("auto", relative),
        "influence, EK-FAC, λ relative, 5 checkpoints": influence(
            "auto", relative, choose=five
        ),
        "SOURCE, 6 checkpoints": source(six),
        "UnrolledInfluence": unrolled,
        "representer points, L2": representer(1e-2, "l2"),
        "representer points, LJE": representer(1e-2, "lje"),
        "TRAK, 1 checkpoint": trak(last),
        "TRAK, 5": trak(five),
        "TRAK, 10": trak(ten),
        "TRAK, all": trak_of_all,
        "embedding similarity": similarity,
    }
    if not isinstance(setting.loss, keras.losses.MeanSquaredError):
        methods_by_name["embedding similarity, by label"] = functools.partial(
            similarity, by_label=True
        )
    if isinstance(setting.build().layers[0], keras.layers.Dense):
        # Not of convolutions and tables: there it would take hours.
        methods_by_name["influence, CG of 10 steps, 5 checkpoints"] = influence(
            find("gauss_newton", "five"), FEW_STEPS, choose=five
        )
        preconditioned = kt.CG(None, 5, kt.EKFAC())
        name = "influence, CG of 5 steps by EK-FAC, λ auto, 5 checkpoints"
        methods_by_name[name] = influence("auto", preconditioned, choose=five)
        for count in (200, 1_000):
            few = kt.CG(None, 5, kt.EKFAC(), examples=count)
            name = (
                f"influence, CG of 5 steps by EK-FAC over {count}, λ auto, "
                "5 checkpoints"
            )
            methods_by_name[name] = influence("auto", few, choose=five)
    if any(isinstance(x, keras.layers.Dropout) for x in setting.build().layers):
        methods_by_name["TRAK, 5, 3 masks"] = masks(five, 3)
        methods_by_name["TRAK, 5, 10 masks"] = masks(five, 10)
    methods_by_name |= {
        "influence, EK-FAC, 5 checkpoints": ekfac_of_five,
        "influence, EK-FAC, λ auto, 5 checkpoints": auto_of_five,
        "influence, EK-FAC, λ auto, 15 checkpoints": auto_of_many,
        "mean of EK-FAC, λ auto, 15, and TRAK, all": mean_of(
            auto_of_many, trak_of_all
        ),
        f"TracIn, 10, {ENSEMBLE} trainings": several(tracin(ten)),
        f"influence, EK-FAC, {ENSEMBLE} trainings": several(ekfac),
        f"influence, EK-FAC, 5 checkpoints, {ENSEMBLE} trainings": several(
            ekfac_of_five
        ),
        f"SOURCE, 6 checkpoints, {ENSEMBLE} trainings": several(source(six)),
        f"influence, EK-FAC, λ auto, 5 checkpoints, {ENSEMBLE} trainings": (
            several(auto_of_five)
        ),
        f"UnrolledInfluence, {ENSEMBLE} trainings": several(unrolled),
        f"TRAK, {ENSEMBLE} trainings": trak(last, trainings=ENSEMBLE),
        f"TRAK, 10, {ENSEMBLE} trainings": trak(ten, trainings=ENSEMBLE),
    }
    return methods_by_name
