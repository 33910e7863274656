"""No hypothesis deadlines: on a busy machine they fail for reasons that are not the code's."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
