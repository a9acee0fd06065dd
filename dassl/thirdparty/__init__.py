"""What only files written for Dassl.pytorch need; nothing else here uses it.

modeling.py: backbones, heads, SimpleNet   trainers.py: TrainerXU
samplers.py: batches by domain or class    tools.py: accuracy, layers, initial weights, rates

Such files import it by Dassl's names, which are kept: dassl.modeling, dassl.engine.TrainerXU,
dassl.engine.SimpleNet, dassl.data.samplers, dassl.metrics, dassl.utils and dassl.utils.torchtools,
dassl.optim.radam. For them alone dassl/config/defaults.py also has keys that nothing here reads:
VERSION, DATASET.NUM_LABELED, VAL_PERCENT, STL10_FOLD, CIFAR_C_TYPE, CIFAR_C_LEVEL and
ALL_AS_UNLABELED. tests/thirdparty runs trainers, a dataset and a launcher written for Dassl.
"""
