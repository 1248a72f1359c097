"""Models: the CNNs that users bring."""

from jobs.tables import ModelRow
from service.endpoints.uploaded_files import UploadKind, upload_router
from service.presentation import shown_model
from service.schemas import MODEL_ID, Model, ModelPage

router = upload_router(
    UploadKind(
        noun="model",
        prefix="mdl",
        table=ModelRow,
        inspection="inspect_model",
        schema=Model,
        page_schema=ModelPage,
        show=shown_model,
        example_id=MODEL_ID,
        formats="`.onnx` (opset 9 to 24; with external data as a `.zip`) and `.pt2` (torch.export)",
    )
)
