"""Interface to S3, the only caller of boto3: it copies the objects below a prefix of a bucket into a folder, and
reads and writes single ones (objects.py: published models).

    HOME/fetched/NAME/           the objects, each at its key below the prefix, and nothing else
    HOME/fetched/.NAME.json      manifest: size and ETag of each object in the bucket, SHA-256 and time of its file here
    HOME/fetched/.NAME.parts/    unfinished downloads
    HOME/files/SHA-256           single objects that the settings name together with their SHA-256 (file.py)

Only changed objects are fetched. An object is verified before its file gets its name, and the manifest is written after the
files that it lists. So if a process dies, the next one continues from the complete files. boto3 finds endpoint and
credentials (AWS_ENDPOINT_URL, AWS_PROFILE, ~/.aws and so on); remint neither stores them nor repeats them in errors.
"""

from remint.stores.s3.bucket import SCHEME, answers, fingerprint
from remint.stores.s3.file import feature_files, fetch_file
from remint.stores.s3.folder import FetchResult, fetch, held
from remint.stores.s3.objects import Objects

__all__ = ["SCHEME", "FetchResult", "Objects", "answers", "feature_files", "fetch", "fetch_file", "fingerprint", "held"]
