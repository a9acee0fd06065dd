"""Every config key of the engine. A method adds its own node under TRAINER."""

from collections.abc import Collection

from yacs.config import CfgNode as CN

_C = CN()
_C.VERSION = 1  # for third-party files alone
_C.OUTPUT_DIR = "./output"
_C.RESUME = ""  # output folder of a run to continue in OUTPUT_DIR, if that holds no checkpoints yet
_C.SEED = -1  # negative: a new one is drawn
_C.USE_CUDA = True
_C.VERBOSE = True

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width
_C.INPUT.INTERPOLATION = "bilinear"  # bilinear | bicubic | nearest
_C.INPUT.TRANSFORMS = ()  # names listed in dassl/data/transforms
_C.INPUT.NO_TRANSFORM = False
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4  # random_crop
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop
_C.INPUT.CUTOUT_N = 1
_C.INPUT.CUTOUT_LEN = 16
_C.INPUT.GN_MEAN = 0.0  # gaussian_noise
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2
_C.INPUT.RANDAUGMENT_M = 10
_C.INPUT.COLORJITTER_B = 0.4
_C.INPUT.COLORJITTER_C = 0.4
_C.INPUT.COLORJITTER_S = 0.4
_C.INPUT.COLORJITTER_H = 0.1
_C.INPUT.RGS_P = 0.2  # randomgrayscale: probability
_C.INPUT.GB_P = 0.5  # gaussian_blur: probability and kernel size
_C.INPUT.GB_K = 21

_C.DATASET = CN()
_C.DATASET.ROOT = ""
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()
_C.DATASET.TARGET_DOMAINS = ()
_C.DATASET.NUM_SHOTS = -1  # images per class; -1: all
_C.DATASET.SUBSAMPLE_CLASSES = "all"  # all | base | new
# For third-party files alone (dassl/thirdparty):
_C.DATASET.NUM_LABELED = -1
_C.DATASET.VAL_PERCENT = 0.1
_C.DATASET.STL10_FOLD = -1
_C.DATASET.CIFAR_C_TYPE = ""
_C.DATASET.CIFAR_C_LEVEL = 1
_C.DATASET.ALL_AS_UNLABELED = False

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4  # never more than there are cores
# Memory for the decoded images of a training set; those beyond it are read every time.
_C.DATALOADER.CACHE_MB = 2048
# Folders for what all runs share, relative to DATASET.ROOT; "": nothing is kept. Both can be
# removed at any time.
_C.DATALOADER.FEATURES = ".features"  # test images' features, of models whose own do not change
_C.DATALOADER.TEST_CACHE = ""  # decoded test images, 3 bytes a pixel: 150 KB each at 224 × 224
_C.DATALOADER.K_TRANSFORMS = 1  # augmented copies of each training image
_C.DATALOADER.RETURN_IMG0 = False  # also the image without augmentation
_C.DATALOADER.TRAIN_X = CN()
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0  # RandomDomainSampler: domains per batch; below 1: all
_C.DATALOADER.TRAIN_X.N_INS = 16  # RandomClassSampler: images per class in a batch
_C.DATALOADER.TRAIN_U = CN()
_C.DATALOADER.TRAIN_U.SAME_AS_X = True
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""  # file with weights to start from
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()
_C.MODEL.HEAD.NAME = ""
_C.MODEL.HEAD.HIDDEN_LAYERS = ()
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"  # adam | amsgrad | sgd | rmsprop | radam | adamw | sghmc
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9
_C.OPTIM.SGD_DAMPNING = 0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.STAGED_LR = False  # all but NEW_LAYERS learn at LR * BASE_LR_MULT
_C.OPTIM.NEW_LAYERS = ()
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine | cyclic_cosine
_C.OPTIM.STEPSIZE = (-1,)  # epochs; single_step takes the last, below 1 means MAX_EPOCH
_C.OPTIM.GAMMA = 0.1
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.CYCLE_EPOCHS = 5  # cyclic_cosine: epochs from restart to restart
_C.OPTIM.WARMUP_EPOCH = -1  # below 1: no warm-up
_C.OPTIM.WARMUP_TYPE = "linear"  # linear | constant
_C.OPTIM.WARMUP_CONS_LR = 1e-5
_C.OPTIM.WARMUP_MIN_LR = 1e-5
_C.OPTIM.WARMUP_RECOUNT = True  # after the warm-up the scheduler starts from its own epoch 0

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints that are kept for good
_C.TRAIN.PRINT_FREQ = 10  # batches between log lines
# where numbers go beside the log: tensorboard, csv (OUTPUT_DIR/scalars.csv), wandb; (): nowhere
_C.TRAIN.LOGGER = ("tensorboard",)
# from how many classes on processes share a training step's classes too, not its images alone; a
# step is then not captured as a CUDA graph
_C.TRAIN.SHARE_CLASSES = 100
_C.TRAIN.COUNT_ITER = "train_x"  # TrainerXU's epoch: train_x | train_u | smaller_one

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False
# also precision, recall, top-5 accuracy and calibration error in the log; results.json has them
_C.TEST.MORE_METRICS = False
_C.TEST.COMPUTE_CMAT = False  # confusion matrix in OUTPUT_DIR/cmat.pt
_C.TEST.NO_TEST = False
_C.TEST.SPLIT = "test"  # test | val
_C.TEST.FINAL_MODEL = "last_step"  # last_step | best_val (evaluates after every epoch)

_C.TRAINER = CN()
_C.TRAINER.NAME = ""


def get_cfg_default() -> CN:
    """A fresh copy of the default config, not frozen."""
    return _C.clone()


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Drops other trainers' nodes from cfg.TRAINER, for a shorter log."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def keys_of_others(cfg: CN, names: Collection[str] | None) -> list[str]:
    """The nodes that are other methods': "TRAINER.COOP", "LOSS", ….

    Args:
        names: what is the method's, of cfg.TRAINER and of what the engine's config has not at its
            top; None: not known, so no key is another's.
    """
    if names is None:
        return []
    top = {*cfg} - {*_C} - {*names}
    methods = {*cfg.TRAINER} - {*_C.TRAINER} - {*names}
    return sorted(top) + [f"TRAINER.{key}" for key in sorted(methods)]


def config_of_method(cfg: CN, names: Collection[str] | None) -> CN:
    """A copy without other methods' settings; `names` as of `keys_of_others`."""
    own = cfg.clone()
    for key in keys_of_others(cfg, names):
        node = own.TRAINER if key.startswith("TRAINER.") else own
        del node[key.removeprefix("TRAINER.")]
    return own


def text_of_method(cfg: CN, names: Collection[str] | None) -> str:
    """The same for the log: what the method's paper set comes first, then the engine's settings."""
    own = config_of_method(cfg, names)
    engines = CN({key: own.pop(key) for key in _C if key != "TRAINER"})
    return f"{own}\n{engines}"
