//! The list of names in one directory beside the catalog's rows of the same names: which of them are new, gone, or
//! lead to another directory than before. What stands at the others is not asked.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use shared::database::DatabaseError;
use shared::path::RelPath;
use shared::rules::Rules;

use super::listing::{Names, Why, why};
use crate::catalog::{Catalog, CatalogRoot, RowPage, RowState};
use crate::tree::{Dir, Stat, Tree};

pub struct Children {
    dir: Arc<dyn Dir>,
    path: RelPath,
    rules: Arc<Rules>,
    names: Names,
    next: usize,
    /// There are names behind this slice.
    more: bool,
    slice: usize,
    root: CatalogRoot,
    rows: RowPage,
    /// Where the next rows are to be read; `None` at the end.
    from: Option<Vec<u8>>,
    end: Option<Vec<u8>>,
}

/// A name that the catalog has below the directory, and the stat of its row if it has one of its own.
type RowName = (Vec<u8>, bool, Option<Stat>);

/// Rows read at once: behind a directory's row come all those below it, which are passed over.
const ROWS: usize = 32;

impl Children {
    /// `None` if the directory is gone.
    pub fn of(
        tree: &dyn Tree,
        rules: Arc<Rules>,
        root: CatalogRoot,
        path: &RelPath,
        slice: usize,
    ) -> Result<Option<Children>, Why> {
        let open = || -> io::Result<_> {
            let dir = tree.dir(path).map_err(|e| e.source)?;
            let (names, more) = Names::read(&*dir, None, slice)?;
            Ok((dir, names, more))
        };
        let (dir, names, more) = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| why(&e))?,
        };
        let mut from = path.dir_key();
        from.push(0);
        let end = path.dir_key_end();
        let (path, rows) = (path.clone(), RowPage::default());
        Ok(Some(Children {
            dir,
            path,
            rules,
            names,
            next: 0,
            more,
            slice,
            root,
            rows,
            from: Some(from),
            end,
        }))
    }

    /// The next path to be looked at with all below it.
    pub fn next(&mut self, catalog: &Catalog) -> Result<Option<Result<RelPath, Why>>, DatabaseError> {
        loop {
            if let Err(e) = self.fill_names() {
                self.end_here();
                return Ok(Some(Err(why(&e))));
            }
            let row = self.row(catalog)?;
            let listed = self.names.get(self.next);
            let order = match (&listed, &row) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(listed), Some((name, is_dir, _))) => super::listing::order(*listed, (name, *is_dir)),
            };
            let found = match (listed, &row) {
                (Some((name, is_dir)), _) if order.is_lt() => Some((name.to_vec(), is_dir)),
                (Some((name, true)), Some((_, _, known))) if order.is_eq() => {
                    let same = known.is_some_and(|known| self.is_same_dir(self.next, &known));
                    (!same).then(|| (name.to_vec(), true))
                }
                (_, Some((name, is_dir, _))) if order.is_gt() => Some((name.clone(), *is_dir)),
                _ => None,
            };
            if order.is_le() {
                self.next += 1;
            }
            if let Some(row) = row.filter(|_| order.is_ge()) {
                self.pass(&row);
            }
            let path = found.and_then(|(name, is_dir)| Some((self.path.child(&name).ok()?, is_dir)));
            if let Some((path, is_dir)) = path
                && !self.rules.excludes_within(&path, is_dir)
            {
                return Ok(Some(Ok(path)));
            }
        }
    }

    fn is_same_dir(&self, at: usize, known: &Stat) -> bool {
        let seen = self.names.text(at).and_then(|name| self.dir.stat(name));
        seen.is_ok_and(|seen| seen.kind.is_dir() && (seen.ino, seen.btime_ns) == (known.ino, known.btime_ns))
    }

    fn fill_names(&mut self) -> io::Result<()> {
        if self.more && self.names.get(self.next).is_none() {
            let last = self.next.checked_sub(1).and_then(|last| self.names.get(last));
            (self.names, self.more) = Names::read(&*self.dir, last, self.slice)?;
            self.next = 0;
        }
        Ok(())
    }

    /// Of the rest nothing can be said.
    fn end_here(&mut self) {
        (self.names, self.more, self.from, self.rows) = (Names::default(), false, None, RowPage::default());
        self.next = 0;
    }

    /// The next name that the catalog has here.
    fn row(&mut self, catalog: &Catalog) -> Result<Option<RowName>, DatabaseError> {
        if self.rows.front().is_none()
            && let Some(from) = self.from.take()
        {
            catalog.read_page(self.root, &from, self.end.as_deref(), ROWS, &mut self.rows)?;
            self.from = self.rows.then(ROWS);
        }
        let above = self.path.dir_key().len();
        Ok(self.rows.front().map(|(key, known)| {
            let name = &key[above..];
            match name.iter().position(|b| *b == b'/') {
                None => (name.to_vec(), false, Some(known.stat)),
                // A directory's own row comes before those below it; without one nothing is known of it. Nor is it of
                // what was gone for a while: nobody told what came into it meanwhile.
                Some(end) => {
                    let own = end + 1 == name.len() && known.state == RowState::Present;
                    (name[..end].to_vec(), true, own.then_some(known.stat))
                }
            }
        }))
    }

    /// Goes on behind a name, and all below it.
    fn pass(&mut self, (name, is_dir, _): &RowName) {
        if !is_dir {
            return self.rows.pop();
        }
        let mut behind = self.path.dir_key();
        behind.extend_from_slice(name);
        behind.push(b'/' + 1);
        self.rows = RowPage::default();
        self.from = Some(behind);
    }
}
