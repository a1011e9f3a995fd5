"use strict";
// A page that is frozen into a report shows what it has, once.
source.state().then(take).then(() => {
  show();
  showLayers();
});
