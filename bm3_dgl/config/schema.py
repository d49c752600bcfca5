"""Every setting of a job, with its default, meaning, unit and range.

One dataclass per section. `setting` carries help, unit and bounds; `load.check` enforces them. Nobody writes to
a config after loading, and each function takes the section that is its own.

Annotations are evaluated here (no `from __future__ import annotations`): the reader takes the types from the fields.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

LARGEST_SEED = 2**32 - 1  # what every random generator in use accepts


class DataFormat(Enum):
    shop = "shop"
    mmrec = "mmrec"
    amazon2014 = "amazon2014"
    amazon2018 = "amazon2018"
    amazon2023 = "amazon2023"
    tables = "tables"


class SplitMethod(Enum):
    random = "random"
    time = "time"
    global_time = "global_time"
    given = "given"


class Repeats(Enum):
    first = "first"
    keep = "keep"


class OnError(Enum):
    strict = "strict"
    skip = "skip"


class FeatureType(Enum):
    float32 = "float32"
    float16 = "float16"


class TimeUnit(Enum):
    s = "s"
    ms = "ms"
    us = "us"
    ns = "ns"


class PartitionMethod(Enum):
    metis = "metis"
    random = "random"


class ModelName(Enum):
    bm3 = "bm3"
    bpr = "bpr"
    lightgcn = "lightgcn"
    popularity = "popularity"

    def __str__(self) -> str:
        """As a reference such as run.dir=runs/${model.name} spells it."""
        return self.name


class Objective(Enum):
    reference = "reference"
    paper = "paper"


class Precision(Enum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class Features(Enum):
    trainable = "trainable"
    residual = "residual"
    fixed = "fixed"


class LossTerm(Enum):
    reconstruction = "reconstruction"
    alignment = "alignment"
    masking = "masking"


class Engine(Enum):
    exact = "exact"
    sampled = "sampled"


class Which(Enum):
    best = "best"
    latest = "latest"


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    unique: bool = False,
) -> Any:
    """A dataclass field with its help, unit and inclusive range (of the value, or of each element of a list).

    unique: no element may stand in a list twice. Text may be empty only where the default is.
    """
    metadata = {"help": help, "unit": unit, "low": low, "high": high, "unique": unique}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class RunConfig:
    dir: str = setting("runs/shop", "Directory of this run: resolved config, metrics, checkpoints, recommendations.")


@dataclass
class DataConfig:
    dir: str = setting("data/shop", "Directory of the prepared dataset; made from the source when it is not there.")
    format: DataFormat = setting(
        DataFormat.shop,
        "Reader: `shop` makes one up from shop.seed, `mmrec` reads the authors' directory, `amazonYEAR` that release's raw"
        " files, `tables` Parquet, CSV or JSON lines (see tables.*).",
    )
    source: str = setting("", "Directory that the reader reads; not used by `shop`.")
    category: str = setting("", "Category in the names of Amazon's files, such as Baby; empty: the only one in data.source.")
    interactions: str = setting(
        "", "Interaction file inside data.source, for `tables` also a pattern such as log/*.csv; empty: the only one there."
    )
    features: dict[str, str] = setting(
        {},
        "Feature file of each modality, relative to data.source: one float row per item. For `tables` also a column of lists,"
        " or a pattern of columns, of the item table. Amazon's feature files are found by data.category.",
    )
    titles: str = setting("", "JSON lines with itemID and title, relative to data.source; empty: none.")
    modalities: list[str] | None = setting(
        None, "Modalities that a model with features uses; null: all of the dataset, []: none.", unique=True
    )
    k_core: int = setting(5, "Users and items with fewer interactions are dropped until none is left (raw formats).", low=1)
    repeats: Repeats | None = setting(
        None,
        "A pair that comes at several times: `keep` keeps all, `first` its first; null: all of Amazon's, as was published, and"
        " the first of `tables`.",
    )
    split: SplitMethod = setting(
        SplitMethod.random,
        "Split of each user's interactions by chance or time, of all by `global_time` at 80 and 90 %, or as tables.split says.",
    )
    split_seed: int = setting(999, "Seed of the random split.", low=0, high=LARGEST_SEED)
    on_error: OnError = setting(
        OnError.strict, "A bad line or record: `strict` ends with file, line and reason, `skip` counts and lists it."
    )
    feature_dtype: FeatureType = setting(FeatureType.float32, "Numbers in the feature files that raw formats are turned into.")


@dataclass
class TablesConfig:
    user: str = setting("user_id", "Column of the user's id in the interactions.")
    item: str = setting("item_id", "Column of the item's id in the interactions, and in the item tables unless item_key says.")
    time: str = setting("", "Column of the time in the interactions; empty: none.")
    time_unit: TimeUnit = setting(TimeUnit.s, "Unit of a time that is a number; dates and timestamps have their own.")
    weight: str = setting("", "Column of a number to keep with each interaction; empty: none.")
    split: str = setting("", "Column of train, valid or test, or 0, 1, 2, for data.split=given; empty: none.")
    items: str = setting("", "Item tables: a file or pattern, relative to data.source; empty: none.")
    item_key: str = setting("", "Column of the item's id in the item tables; empty: that of tables.item.")
    title: str = setting("", "Column of the title in the item tables; empty: none.")
    text: list[str] = setting([], "Columns that make up an item's text, joined in this order.", unique=True)
    category: str = setting("", "Column of the category; empty: none.")
    image: str = setting("", "Column of the picture's path or URL; empty: none.")


@dataclass
class EncodeConfig:
    text: str = setting("", "Model that makes the modality `text` from the items' texts; empty: none.")
    image: str = setting("", "Model that makes the modality `image` from pictures; empty: none.")
    image_weights: str = setting("", "File with the weights of encode.image.")
    image_dir: str = setting("", "Directory with one picture per item, named by the item's id.")


@dataclass
class DownloadConfig:
    url: str = setting("", "Directory on a server, http:// or https://, that launch/download.py fetches from.")
    files: list[str] = setting(
        [], "Files below download.url, with their folders there; each goes to data.source under its last name.", unique=True
    )
    checksums: str = setting("", "File of SHA-256 sums of them as sha256sum writes it; empty: only sizes are checked.")
    attempts: int = setting(8, "Failures in a row, without a byte gained, that end a download.", low=1)
    wait_seconds: float = setting(
        1.0, "Wait after the first failure; doubles with each, up to a minute.", unit="seconds", low=0.0, high=60.0
    )
    silence_seconds: float = setting(
        30.0, "A server that sends nothing for longer is asked again.", unit="seconds", low=0.1, high=3600.0
    )


@dataclass
class ShopConfig:
    users: int = setting(2000, "Users of the made-up shop.", low=10)
    items: int = setting(800, "Items of the made-up shop.", low=10)
    interactions: int = setting(12, "Mean interactions of a user; every user has at least 5.", low=5, high=1000)
    tastes: int = setting(16, "Dimensions of the planted taste that features and interactions share.", low=1, high=64)
    visual_width: int = setting(64, "Width of the made-up visual features.", low=1)
    text_width: int = setting(48, "Width of the made-up text features.", low=1)
    seed: int = setting(7, "Seed of everything in the shop.", low=0, high=LARGEST_SEED)


@dataclass
class PartitionConfig:
    dir: str = setting("", "Directory of the partitioned graph; empty: parts/ inside data.dir, one folder per kind.")
    parts: int = setting(1, "Parts of the graph, one per machine.", low=1, high=4096)
    method: PartitionMethod = setting(PartitionMethod.metis, "How nodes are assigned to parts.")
    seed: int = setting(0, "Seed of the assignment.", low=0, high=LARGEST_SEED)


@dataclass
class ClusterConfig:
    peers: list[str] = setting(
        [],
        "Name or IPv4 address of every machine, in the order of --node_rank; empty: found on the way to --master_addr.",
        unique=True,
    )
    resolve_seconds: float = setting(
        120.0, "How long a peer's name may be unknown at the start.", unit="seconds", low=0.1, high=3600.0
    )
    silence_seconds: float = setting(
        7.0, "A machine that is silent for longer is lost, and the job ends.", unit="seconds", low=3.0, high=3600.0
    )


@dataclass
class TrainConfig:
    seed: int = setting(1, "Seed of initial values, batch order, dropout and sampling.", low=0, high=LARGEST_SEED)
    resume: bool = setting(False, "Continue from the newest valid checkpoint of run.dir.")
    device: str = setting("cpu", "Where the head runs: cpu, cuda or cuda:N. The graph's tables stay in host memory.")
    epochs: int = setting(1000, "Most epochs to train.", unit="epochs", low=1)
    batch_size: int = setting(512, "Positive pairs per rank and step.", unit="pairs", low=1)
    learning_rate: float = setting(1e-3, "Adam's learning rate.", low=1e-12, high=10.0)
    max_steps: int = setting(
        0, "A trial of speed and memory: end after so many steps, unjudged and not saved; 0: train.", unit="steps", low=0
    )
    patience: int = setting(20, "Evaluations without a better validation recall before training stops.", low=1)
    burn_in: int = setting(0, "Patience is counted only after this many epochs.", unit="epochs", low=0)
    checkpoint_steps: int = setting(
        0, "Also save in mid-epoch, every so many steps; 0: at the ends of epochs only.", unit="steps", low=0
    )
    checkpoint_epochs: int = setting(5, "Save at least every so many epochs; the best is always saved.", unit="epochs", low=1)
    keep_checkpoints: int = setting(2, "Newest checkpoints to keep, besides the best.", low=1)
    profile: bool = setting(False, "Trace ten steps of every rank and write run.dir/profile/, with a page on where time goes.")
    precision: Precision = setting(
        Precision.float32,
        "`bfloat16`: rows that neighbours read and fixed raw features are stored and projected in half the bytes.",
    )
    progress: bool = setting(True, "Show a progress bar on rank 0 (plain lines where the output is not a terminal).")
    tensorboard: bool = setting(True, "Write TensorBoard event files under run.dir.")


@dataclass
class ModelConfig:
    name: ModelName = setting(
        ModelName.bm3,
        "What is trained, by its paper's loss. `bpr` (matrix factorisation) and `lightgcn` draw a negative item for each pair"
        " and read no features; `popularity` ranks by train interactions and is not trained. Defaults of their own: see"
        " config/models.py.",
    )
    embedding_dim: int = setting(64, "Width d of every latent vector.", low=1, high=4096)
    layers: int = setting(1, "LightGCN layers L.", low=0, high=16)
    dropout: float = setting(0.5, "Probability p that a column of the target view is zeroed.", low=0.0, high=0.99)
    reg_weight: float = setting(
        0.1,
        "Weight lambda of the embedding norms: under bm3's reference objective of all rows, otherwise of the batch's, squared.",
        low=0.0,
    )
    cl_weight: float = setting(2.0, "Weight of alignment + masking under the reference objective; the paper's is 1.", low=0.0)
    objective: Objective = setting(Objective.reference, "`reference`: what the authors' code computes; `paper`: the equations.")
    features: Features = setting(
        Features.residual, "How raw features enter: fixed, trainable, or fixed plus a free row per item and modality."
    )
    losses: list[LossTerm] = setting(list(LossTerm), "Loss terms in use; leave one out for the paper's ablation.", unique=True)


@dataclass
class PropagationConfig:
    engine: Engine = setting(Engine.exact, "`exact`: full propagation in shared tables; `sampled`: blocks of the batch.")
    fanouts: list[int] = setting([10, 10], "Neighbours drawn per layer by `sampled`, nearest the batch first; -1: all.", low=-1)


@dataclass
class EvaluateConfig:
    cutoffs: list[int] = setting([10, 20], "The K of Recall@K and NDCG@K.", low=1, high=10000, unique=True)
    monitor: int | None = setting(
        None, "K of the validation recall that decides; null: 20 if a cutoff, else the largest.", low=1
    )
    every: int = setting(1, "Epochs between evaluations.", unit="epochs", low=1)
    mask_validation: bool = setting(False, "Also hide a user's validation items at test time (not in the published protocol).")
    block_users: int = setting(256, "Users that are scored at once; bounds memory, never the result.", unit="users", low=1)
    users_file: bool = setting(True, "Write users_test.parquet: metrics and ranked items of every user of the test split.")


@dataclass
class RecommendConfig:
    top_k: int = setting(20, "Items per user.", low=1, high=10000)
    checkpoint: Which = setting(Which.best, "Which checkpoint of the run speaks.")
    users: list[str] = setting([], "Raw ids of users whose lists are printed.", unique=True)
    dir: str = setting("", "Where recommendations and embeddings go; empty: run.dir.")


@dataclass
class JobConfig:
    """All settings of a job."""

    debug: bool = setting(False, "One process, no graph server: the same results as one rank.")
    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    shop: ShopConfig = field(default_factory=ShopConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    propagation: PropagationConfig = field(default_factory=PropagationConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    recommend: RecommendConfig = field(default_factory=RecommendConfig)
