"""Datasets: the images that models are judged by."""

from jobs.tables import DatasetRow
from service.endpoints.uploaded_files import UploadKind, upload_router
from service.presentation import shown_dataset
from service.schemas import DATASET_ID, Dataset, DatasetPage

router = upload_router(
    UploadKind(
        noun="dataset",
        prefix="dst",
        table=DatasetRow,
        inspection="inspect_dataset",
        schema=Dataset,
        page_schema=DatasetPage,
        show=shown_dataset,
        example_id=DATASET_ID,
        formats="`.npz` (`x` as N, C, H, W and optionally `y`), a `.zip` or `.tar` of image folders, and `.safetensors`",
    )
)
