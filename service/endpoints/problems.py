"""Pages about the kinds of problems: where the `type` of a problem document leads."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from service import refusals
from service.errors import problem_page

router = APIRouter(prefix="/problems", include_in_schema=False)


@router.get("/{slug}")
async def show_problem(slug: str) -> HTMLResponse:
    page = problem_page(slug)
    if page is None:
        raise refusals.AddressNotFound
    return HTMLResponse(page)
