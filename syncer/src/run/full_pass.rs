//! A full pass of one root: the destination's listing is compared with the catalog, and the tree is examined after it.
//! It adopts what is there already, in a new leg or after a lost catalog, without sending it again.

use shared::path::RelPath;

use super::{Run, RunError};
use crate::catalog::{CatalogRoot, Change, Intent, Origin, Reconciled};
use crate::leg::Listed;

impl Run<'_> {
    /// Lists and reconciles; the caller examines the whole root next.
    pub(super) async fn begin_full_pass(&mut self, root: usize) -> Result<(), RunError> {
        let Some(catalog_root) = self.roots[root].catalog else { return Ok(()) };
        let store = self.store()?;
        let prefix = self.roots[root].prefix.clone();
        tracing::info!(root = %self.roots[root].name, "full pass: listing the destination");
        let begun_at = self.parts.catalog.begin_staging()?;
        let mut token = None;
        loop {
            let page = store.list(&prefix, token).await?;
            let mine: Vec<(RelPath, &Listed, bool)> = page
                .objects
                .iter()
                .filter_map(|object| {
                    Some((object.dest.as_ref()?.strip(&prefix)?, object, self.is_ours(object)))
                })
                .collect();
            self.parts.catalog.stage(&mine)?;
            let apart = page.objects.iter().filter(|object| object.dest.is_none());
            self.parts.catalog.stage_apart(apart.map(|object| object.object.as_str()))?;
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        let now = self.parts.clock.wall_ns();
        let done: Reconciled = self.parts.catalog.reconcile(
            catalog_root,
            begun_at,
            !store.holds().writers,
            now,
            self.report.run,
        )?;
        self.doubt_intended(catalog_root)?;
        tracing::info!(listed = done.listed, lost = done.lost, found = done.found, "full pass: compared");
        self.report.listed += done.listed;
        self.report.lost += done.lost;
        self.full_passes.push(root);
        Ok(())
    }

    /// Where objects do not say who wrote them, what was found at the name of an open intent is ours, and may be half of
    /// what was meant: it is neither adopted nor left alone.
    fn doubt_intended(&mut self, root: CatalogRoot) -> Result<(), RunError> {
        if self.store()?.holds().writers {
            return Ok(());
        }
        let mut changes = Vec::new();
        for Intent { key, .. } in self.parts.catalog.intents(root)? {
            if let Some(row) = self.parts.catalog.get(root, &key)?.filter(|row| row.origin != Origin::Made) {
                changes.push(Change::Put { root, key, row: row.doubted() });
            }
        }
        Ok(self.parts.catalog.apply(&changes, &[])?)
    }

    /// After the tree was examined: objects that are not ours and have no local file are counted and left alone.
    pub(super) fn end_full_passes(&mut self) -> Result<(), RunError> {
        for root in std::mem::take(&mut self.full_passes) {
            if let Some(catalog_root) = self.roots[root].catalog {
                self.report.foreign += self.parts.catalog.foreign_count(catalog_root)?;
            }
        }
        Ok(())
    }
}
