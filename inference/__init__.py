"""What a trained model is asked."""

from dassl.commands import quiet_imports

quiet_imports(__name__)
