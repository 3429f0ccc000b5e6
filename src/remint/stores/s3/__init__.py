"""S3's door, the only caller of boto3: what lies in a bucket below a prefix, brought into a folder.

    HOME/fetched/NAME/           the objects, each at its key below the prefix, and nothing else
    HOME/fetched/.NAME.json      manifest: what the bucket said of each (size, ETag), and what lies here (SHA-256, time)
    HOME/fetched/.NAME.parts/    objects on their way
    HOME/files/SHA-256           single objects that settings name together with their SHA-256 (file.py)

Only what changed is fetched. An object is verified before it takes its name, and the manifest is written after the files
that it vouches for: whenever a process dies, the next one goes on from what is whole. Endpoint and credentials are boto3's
own affair (AWS_ENDPOINT_URL, AWS_PROFILE, ~/.aws and so on): neither is written down, nor repeated in an error.
"""

from remint.stores.s3.bucket import SCHEME, answers
from remint.stores.s3.file import fetch_file
from remint.stores.s3.folder import Fetched, fetch, held

__all__ = ["SCHEME", "Fetched", "answers", "fetch", "fetch_file", "held"]
