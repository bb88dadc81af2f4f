"""What do attention maps look like when one can touch them?  One HTML file, with everything in it and no network.

``to_html`` writes ``AttentionMaps`` as a page: layers × heads at a glance, one map large, by weight, by norm and the
difference, and for each token where it looks, what it takes and who takes from it.

The page is made in three steps, a file each: ``content`` reads maps into plain data, ``packing`` stores their numbers
in few bytes, ``page`` puts data, style and script into one file that no text in it can break out of.  ``viewer.html``,
``viewer.css`` and ``viewer.js`` are the page itself.  ``answer`` is another page: an answer beside its sources.
"""

from captum_norm.viewer.answer import answer_page
from captum_norm.viewer.page import in_notebook, to_html

__all__ = ["answer_page", "in_notebook", "to_html"]
